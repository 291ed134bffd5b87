"""A few random conversations for a family of every kind, and in a sweep for all of them.

`scripts/check_conversations.py` has thousands.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from support.engine_conversations import MOVES, Simulation
from support.families import FAMILIES, FAMILIES_IN_TURN

from vision_add_ons.testing import Reference

Step = tuple[str, int]
STEP = st.tuples(st.sampled_from(list(MOVES)), st.integers(0, 2**16))
STEPS = st.sampled_from([2, *range(7, 10)]).flatmap(
    lambda count: st.lists(STEP, min_size=count, max_size=count)
)
"""What each step does, and the seed of what is random about it: the shorter, the clearer. What is
tried first is always the simplest, the same step again and again: it need not be long."""


@pytest.mark.parametrize("family", FAMILIES_IN_TURN, ids=lambda family: family.name)
def test_warm_answers_are_cold_answers(
    family: type[Reference], tmp_path: Path, seed: int, record_property
) -> None:
    with Simulation.of(family, tmp_path, seed) as simulation:

        @settings(max_examples=2)
        @given(steps=STEPS)
        def check(steps: list[Step]) -> None:
            simulation.forget_all()
            for move, chosen in steps:
                simulation.step(move, chosen)

        check()
        simulation.step("new")
        simulation.step("restart")
        # Some families keep nothing of a prompt with a picture that another may go on from.
        for _ in range(40):
            if simulation.cached > 0:
                break
            simulation.talks.clear()
            simulation.step("new")
            simulation.step("again")
        assert simulation.cached > 0
    record_property("parity", (family.name, "warm against cold", simulation.worst))


SEVERAL = [
    family for family in FAMILIES if family.name in ("gemma3", "qwen2_vl", "qwen3_vl", "qwen3_5")
]


@pytest.mark.parametrize("family", SEVERAL, ids=lambda family: family.name)
def test_several_at_once(
    family: type[Reference], tmp_path: Path, seed: int, record_property
) -> None:
    """Warm and in company, against cold and alone; some leave before their end."""
    with Simulation.of(family, tmp_path, seed, together=4) as simulation:
        for _ in range(6):
            simulation.step()
        assert simulation.cached > 0
    record_property(
        "parity", (family.name, "warm, several at once, against cold", simulation.worst)
    )
