"""How much is drafted, on a clock of the test's own."""

import random
from statistics import mean

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


def several(seed: int) -> range:
    """The seeds of some answers: what is drawn for one may be anything."""
    return range(seed, seed + 24)


def best(rate: float, base: float, each: float) -> float:
    """Seconds a token with the best count there is, known from the start."""

    def seconds(count: int) -> float:
        return (base + each * count) / sum(rate**i for i in range(count + 1))

    return min([1.0, *(seconds(count) for count in range(1, MOST + 1))])


@pytest.mark.parametrize("rate", [0.6, 0.75, 0.9])
@pytest.mark.parametrize(("base", "each"), [(1.05, 0.01), (1.05, 0.1), (1.2, 0.25)])
def test_it_is_near_the_best_count(rate: float, base: float, each: float, seed: int) -> None:
    took = mean(answered(Pace(StepTimes()), rate, 2000, base, each, s) for s in several(seed))
    assert took < best(rate, base, each) * 1.12


def test_interruptions_change_nothing(seed: int) -> None:
    times = StepTimes()
    took = mean(answered(Pace(times), 0.9, 96, 1.05, 0.1, s, 0.15) for s in several(seed))
    assert took < best(0.9, 1.05, 0.1) * 1.25


def test_what_is_used_for_the_first_time_does_not_count() -> None:
    """A first draft that takes very long, as the kernels are compiled that it is run by."""
    times = StepTimes()
    pace = Pace(times)
    for _ in range(ENOUGH):
        pace.stepped(1.0)
    pace.drafted(TRIAL, TRIAL, 100.0)
    assert pace.count == TRIAL
    for _ in range(2):
        pace.drafted(TRIAL, TRIAL, 1.2)
    assert pace.count > TRIAL
    another = Pace(times)
    another.stepped(1.0)
    assert another.count > TRIAL, "the next answer starts with what is known"


def test_a_first_step_that_was_interrupted_is_made_up_for() -> None:
    """While all drafts pay, there are no steps without by which to learn better."""
    times = StepTimes()
    for seconds in (30.0, 1.0, 1.0):
        times.stepped(seconds)
    for _ in range(ENOUGH):
        times.drafted(TRIAL, 4.0)
    assert times.step == 1.0
    assert times.line == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("rate", [0.0, 0.05])
@pytest.mark.parametrize(("base", "each"), [(1.3, 0.01), (1.3, 0.1), (2.0, 0.3)])
def test_what_does_not_pay_costs_next_to_nothing(
    rate: float, base: float, each: float, seed: int
) -> None:
    took = mean(answered(Pace(StepTimes()), rate, 512, base, each, s) for s in several(seed))
    assert took < 1.02


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
    """Nothing can be said of what pays before some are known, and each answer tells anew."""
    times = StepTimes()
    pace = Pace(times)
    for _ in range(ENOUGH):
        assert pace.count == 0
        pace.stepped(1.0)
    assert pace.count == TRIAL
    another = Pace(times)
    assert another.count == 0
    another.stepped(1.0)
    assert another.count == TRIAL
