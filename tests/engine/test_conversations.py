"""A few random conversations for every family; `scripts/check_conversations.py` has thousands."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from support.engine_conversations import BUDGET, MOVES, Simulation
from support.families import FAMILIES

from vision_add_ons.testing import Reference, written

Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(list(MOVES)), st.integers(0, 2**16)), min_size=20, max_size=30
)
"""What each step does, and the seed of what is random about it: the shorter, the clearer."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_warm_answers_are_cold_answers(
    family: type[Reference], tmp_path: Path, seed: int, record_property
) -> None:
    reference = family(seed)
    written(reference, tmp_path)
    with Simulation(tmp_path, reference.image_token, seed, BUDGET) as simulation:

        @settings(max_examples=2)
        @given(steps=STEPS)
        def check(steps: list[Step]) -> None:
            simulation.forget_all()
            for move, chosen in steps:
                simulation.step(move, chosen)

        check()
        simulation.step("new")
        simulation.step("restart")
        assert simulation.cached > 0
    record_property("parity", (family.name, "warm against cold", simulation.worst))
