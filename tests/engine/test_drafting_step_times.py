"""How long steps take, told apart by how much was drafted."""

import pytest

from engine.drafting.step_times import ENOUGH, KEPT, StepTimes


def step(times: StepTimes) -> None:
    """As many steps of a second as are enough."""
    for _ in range(ENOUGH):
        times.stepped(1.0)


def test_nothing_is_known_at_first() -> None:
    times = StepTimes()
    assert times.step is None
    assert not times.known
    for _ in range(ENOUGH):
        times.drafted(3, 1.0)
    assert not times.known, "without a step there is nothing to compare with"
    step(times)
    assert times.known


def test_the_line_of_several_lengths() -> None:
    times = StepTimes()
    step(times)
    for count in (1, 4, 2, 8, 8):
        times.drafted(count, 1.5 + 0.25 * count)
    times.drafted(3, 80.0)
    assert times.line == pytest.approx((1.5, 0.25), rel=0.02)


def test_one_length_is_told_apart_from_a_step_without() -> None:
    times = StepTimes()
    step(times)
    for _ in range(ENOUGH):
        times.drafted(4, 2.0)
    assert times.line == pytest.approx((1.0, 0.25))


def test_more_tokens_never_make_it_quicker() -> None:
    times = StepTimes()
    step(times)
    for count in (1, 2, 3, 4):
        times.drafted(count, 2.0 - 0.1 * count)
    assert times.line[1] == 0


def test_no_draft_is_quicker_than_a_step_without() -> None:
    """The slope is far too steep if the longer ones were interrupted."""
    times = StepTimes()
    step(times)
    for count, seconds in ((1, 1.1), (1, 1.1), (2, 30.0), (2, 30.0)):
        times.drafted(count, seconds)
    base, each = times.line
    assert base >= 1.0
    assert each > 0


def test_one_of_its_own_length_that_was_interrupted_does_not_count() -> None:
    times = StepTimes()
    step(times)
    for _ in range(12):
        times.drafted(3, 1.35)
    for count, seconds in ((8, 55.5), (3, 40.5), (3, 40.5)):
        times.drafted(count, seconds)
    assert times.line == pytest.approx((1.0, 0.35 / 3))


def test_what_is_long_ago_is_forgotten() -> None:
    times = StepTimes()
    for seconds in (1.0, 5.0):
        for _ in range(KEPT):
            times.stepped(seconds)
            times.drafted(2, 2 * seconds)
    assert times.step == 5.0
    assert times.line == pytest.approx((5.0, 2.5))
