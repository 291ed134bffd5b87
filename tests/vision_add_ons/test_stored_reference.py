"""A reference that was recorded, replayed in a process that cannot import torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from support.pixtral_reference import PixtralReference
from support.seeds import SWEEP

from engine import load
from vision_add_ons.pixtral import PixtralAddOn
from vision_add_ons.testing import BOS, EOS, WORDS, Kit, NotRecorded, StoredReference, record
from vision_add_ons.testing.stored import prompt_key

REPLAYED = """
from engine import load
from vision_add_ons.pixtral import PixtralAddOn
from vision_add_ons.testing import Conformance, StoredReference

class TestStored(Conformance):
    add_on = PixtralAddOn
    reference = StoredReference({file!r})
    load = staticmethod(load)
"""
RUN = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from model_kit.blas import preload_openblas
preload_openblas()
import pytest
plugins = ["cacheprovider", "xdist", "schemathesis", "hypothesispytest"]
unused = [argument for name in plugins for argument in ("-p", f"no:{{name}}")]
status = pytest.main(["-q", *unused, "-k", {chosen!r}, {file!r}])
assert sys.modules["torch"] is None
sys.exit(status)
"""


SOME = "rows or text or one_picture or conversation or values or pixels or absent or prompts"
"""What each kind of what was recorded is asked for by."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stored") / "pixtral.npz"
    record(PixtralReference, file, add_on=PixtralAddOn, load=load, seed=3)
    return file


@pytest.mark.whole
def test_replayed_without_torch(file: Path, tmp_path: Path) -> None:
    test = tmp_path / "test_stored.py"
    test.write_text(REPLAYED.format(file=str(file)))
    script = RUN.format(file=str(test), chosen="" if SWEEP else SOME)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert ", 2 skipped" in done.stdout  # pixels, and those of absent settings
    assert file.stat().st_size < 2**22


def test_what_was_not_recorded(file: Path) -> None:
    stored = StoredReference(file)
    picture = Image.new("RGB", (20, 20))
    for ask in (stored.block, stored.rows):
        with pytest.raises(NotRecorded, match=r"pixtral\.npz holds no .* [Rr]ecord it again"):
            ask(picture)
    with pytest.raises(NotRecorded, match="holds no logits"):
        stored.logits([BOS, *WORDS], [], [])


def test_an_answer_that_leaves_the_recorded_one(file: Path, tmp_path: Path) -> None:
    """The logits end with those that decide where it leaves."""
    stored = StoredReference(file)
    words = Kit(PixtralAddOn, stored, load, tmp_path, 3).case("text only").words(40)
    prompt = [BOS, *words]
    known = stored.index["logits"][prompt_key(prompt, [])]
    whole = stored.logits(prompt, [], known["answer"])
    assert np.isnan(whole[:40]).all()
    assert len(whole) == 41 + len(known["answer"])
    left = stored.logits(prompt, [], [*known["answer"][:3], EOS, *known["answer"][4:]])
    assert np.array_equal(left[40:], whole[40:44])
