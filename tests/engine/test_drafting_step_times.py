"""How long steps take, told apart by how much was drafted."""

import pytest

from engine.drafting.step_times import ENOUGH, KEPT, StepTimes


def test_nothing_is_known_at_first() -> None:
    times = StepTimes()
    assert times.step is None
    assert not times.known
    for _ in range(ENOUGH):
        times.drafted(3, 1.0)
    assert not times.known, "without a step there is nothing to compare with"
    times.stepped(1.0)
    assert times.known


def test_the_line_of_several_lengths() -> None:
    times = StepTimes()
    times.stepped(1.0)
    for count in (1, 4, 2, 8, 8):
        times.drafted(count, 1.5 + 0.25 * count)
    times.drafted(3, 80.0)
    assert times.line == pytest.approx((1.5, 0.25), rel=0.02)


def test_one_length_is_told_apart_from_a_step_without() -> None:
    times = StepTimes()
    times.stepped(1.0)
    for _ in range(ENOUGH):
        times.drafted(4, 2.0)
    assert times.line == pytest.approx((1.0, 0.25))


def test_more_tokens_never_make_it_quicker() -> None:
    times = StepTimes()
    times.stepped(1.0)
    for count in (1, 2, 3, 4):
        times.drafted(count, 2.0 - 0.1 * count)
    assert times.line[1] == 0


def test_what_is_long_ago_is_forgotten() -> None:
    times = StepTimes()
    for seconds in (1.0, 5.0):
        for _ in range(KEPT):
            times.stepped(seconds)
            times.drafted(2, 2 * seconds)
    assert times.step == 5.0
    assert times.line == pytest.approx((5.0, 2.5))
