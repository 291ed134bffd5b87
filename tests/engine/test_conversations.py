"""A few random conversations for a family of every kind, and in a sweep for all of them.

`scripts/check_conversations.py` has thousands.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from support.engine_conversations import MOVES, Simulation
from support.families import FAMILIES, FAMILIES_IN_TURN
from support.seeds import SWEEP

from engine.decoding.lane import Lane
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


@pytest.mark.whole
@pytest.mark.parametrize(
    "family", SEVERAL if SWEEP else SEVERAL[::3], ids=lambda family: family.name
)
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


GUESSED = [(SEVERAL[0], "lookup"), (SEVERAL[-1], "itself")]


@pytest.mark.parametrize(("family", "draft"), GUESSED, ids=lambda one: getattr(one, "name", one))
def test_guessed_ahead(
    family: type[Reference], draft: str, tmp_path: Path, seed: int, record_property
) -> None:
    """With pictures, which the draft does not see; some are left or cut in the midst of a guess."""
    with Simulation.of(family, tmp_path, seed, draft=draft) as simulation:
        for _ in range(6):
            simulation.step()
        simulation.step("restart")
        assert simulation.drafted > 0
    record_property("parity", (family.name, f"drafted by {draft}, against cold", simulation.worst))


def test_positions_that_a_refused_guess_takes_along_are_seen(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: what pictures add to positions is forgotten with it."""
    go_back = Lane._go_back

    def faulty(lane: Lane, count: int, told: Sequence[int]) -> list[int]:
        behind = go_back(lane, count, told)
        if count:
            for cache in lane.caches:
                cache.shifts = [0]
        return behind

    monkeypatch.setattr(Lane, "_go_back", faulty)
    (family,) = (family for family in SEVERAL if family.name == "qwen2_vl")
    with Simulation.of(family, tmp_path, seed, draft="itself") as simulation:

        def several() -> None:
            for _ in range(12):
                simulation.step("new")

        with pytest.raises(AssertionError):
            several()
