"""The tests themselves: the same each time, whatever ran before."""

import json
import os
import subprocess
from pathlib import Path

from support.processes import python

ROOT = Path(__file__).parent.parent

DRAWING = """
import json, pathlib, random, sys
import mlx.core as mx
import numpy as np
import schemathesis
from hypothesis import given, settings, strategies as st
from PIL import Image

DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "it", "version": "1"},
    "paths": {"/it": {"post": {
        "requestBody": {"required": True, "content": {"application/json": {"schema": {
            "type": "object", "required": ["a"], "additionalProperties": False,
            "properties": {"a": {"type": "string"}, "b": {"type": "number", "minimum": 2}},
        }}}},
        "responses": {"200": {"description": "it"}},
    }}},
}

def test_draws(seed):
    found = [seed, random.random(), np.random.rand(), mx.random.uniform().item()]

    @settings(max_examples=30)
    @given(st.lists(st.text(max_size=4)), st.integers(), st.floats(allow_nan=False))
    def draw(texts, whole, part):
        found.append([texts, whole, part])

    draw()
    for operation in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations():
        for mode in schemathesis.GenerationMode:
            settings(max_examples=30)(
                given(operation.ok().as_strategy(mode))(lambda case: found.append(repr(case.body)))
            )()
    pathlib.Path(OUT).write_text(json.dumps(found))
"""

BEFORE = """
def test_what_ran_before(seed):
    import random
    random.random()
    import engine.cli, engine.server  # modules that others may not have imported
    from support import engine_conversations
"""


def drawn(place: Path, before: str = "", **environment: str) -> list[object]:
    """What a test draws that runs by the tests' conftest, after others."""
    out = place / "drawn"
    tests = place / "test_it.py"
    tests.write_text(before + DRAWING.replace("OUT", repr(str(out))))
    inherited = {n: v for n, v in os.environ.items() if n != "SIGHTLINE_SEED"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    options = ["-n", "0", "-p", "no:cacheprovider", "-p", "conftest"]
    options += ["--assert", "plain", "-c", ROOT / "pyproject.toml"]
    ran = subprocess.run(
        python("import sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))", *options, tests),
        env={**inherited, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    return list(json.loads(out.read_text()))


def test_the_same_each_time_and_fresh_in_a_sweep(tmp_path: Path) -> None:
    first = drawn(tmp_path)
    assert len(first) > 60
    assert drawn(tmp_path, BEFORE) == first
    other = drawn(tmp_path, SIGHTLINE_SEED="5")
    assert not [a for a, b in zip(first[:4], other, strict=False) if a == b]
    assert other[4:] != first[4:]
