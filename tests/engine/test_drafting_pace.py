"""How much is drafted, on a clock of the test's own."""

import random

import pytest

from engine.drafting.pace import MOST, TRIAL, Pace
from engine.drafting.step_times import ENOUGH, StepTimes


def answered(
    pace: Pace,
    rate: float,
    tokens: int,
    base: float,
    each: float,
    seed: int,
    interrupted: float = 0.0,
) -> float:
    """Seconds for so many tokens, of which one in `rate` is what was drafted; 1 without drafts.

    Of all steps, so many are `interrupted`, and seem to take thirty times as long.
    """
    chance, noise, clock, made = random.Random(seed), random.Random(seed + 1), 0.0, 0

    def seen(seconds: float) -> float:
        return seconds * (30 if noise.random() < interrupted else 1)

    while made < tokens:
        count = pace.count
        if not count:
            clock, made = clock + 1, made + 1
            pace.stepped(seen(1.0))
            continue
        accepted = 0
        while accepted < count and chance.random() < rate:
            accepted += 1
        seconds = base + each * count
        pace.drafted(count, accepted, seen(seconds))
        clock, made = clock + seconds, made + accepted + 1
    return clock / made


def best(rate: float, base: float, each: float) -> float:
    """Seconds a token with the best count there is, known from the start."""

    def seconds(count: int) -> float:
        return (base + each * count) / sum(rate**i for i in range(count + 1))

    return min([1.0, *(seconds(count) for count in range(1, MOST + 1))])


@pytest.mark.parametrize("rate", [0.6, 0.75, 0.9])
@pytest.mark.parametrize(("base", "each"), [(1.05, 0.01), (1.05, 0.1), (1.2, 0.25)])
def test_it_is_near_the_best_count(rate: float, base: float, each: float, seed: int) -> None:
    took = answered(Pace(StepTimes()), rate, 2000, base, each, seed)
    assert took < best(rate, base, each) * 1.12


def test_interruptions_change_nothing(seed: int) -> None:
    times = StepTimes()
    took = [answered(Pace(times), 0.9, 96, 1.05, 0.1, seed + i, 0.15) for i in range(20)]
    assert sum(took) / len(took) < best(0.9, 1.05, 0.1) * 1.25


def test_what_is_used_for_the_first_time_does_not_count() -> None:
    """A first draft that takes very long, as the kernels are compiled that it is run by."""
    times = StepTimes()
    pace = Pace(times)
    pace.stepped(1.0)
    pace.drafted(TRIAL, TRIAL, 100.0)
    assert pace.count == TRIAL
    for _ in range(2):
        pace.drafted(TRIAL, TRIAL, 1.2)
    assert pace.count > TRIAL
    assert Pace(times).count > TRIAL, "the next answer starts with what is known"


@pytest.mark.parametrize("rate", [0.0, 0.05])
@pytest.mark.parametrize(("base", "each"), [(1.3, 0.01), (1.3, 0.1), (2.0, 0.3)])
def test_what_does_not_pay_costs_next_to_nothing(
    rate: float, base: float, each: float, seed: int
) -> None:
    times = StepTimes()
    for _ in range(ENOUGH):  # which an engine learns once
        times.drafted(TRIAL, base + each * TRIAL)
    assert answered(Pace(times), rate, 512, base, each, seed) < 1.02


def test_it_comes_back_when_drafts_are_right_again(seed: int) -> None:
    pace = Pace(StepTimes())
    answered(pace, 0.0, 200, 1.05, 0.02, seed)
    assert answered(pace, 0.95, 2000, 1.05, 0.02, seed) < 0.3


def test_a_count_that_is_asked_for_is_kept() -> None:
    pace = Pace(StepTimes(), 5)
    assert pace.count == 5
    for _ in range(20):
        pace.drafted(5, 0, 3.0)
        pace.stepped(1.0)
    assert pace.count == 5


def test_the_first_step_is_without() -> None:
    """Nothing can be said of what pays before one is known."""
    pace = Pace(StepTimes())
    assert pace.count == 0
    pace.stepped(1.0)
    assert pace.count == TRIAL
