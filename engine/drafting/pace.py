"""How many tokens to draft: as many as pay, by what was accepted and how long steps take."""

from engine.drafting.step_times import StepTimes

MOST = 16
"""Tokens that are drafted at once, at most: behind them, a step takes longer for each."""

REST, LONGEST_REST = 32, 256
"""Tokens for which nothing is drafted after it did not pay, doubled each time up to the latter: a
draft that is never accepted costs a step or two in so many."""

MEMORY = 0.95
"""How much of what was accepted is remembered at each draft: some twenty of them decide. By fewer,
drafts of which little more than half is right look, now and then, as if they did not pay."""

TRIAL = 3
"""Tokens of a draft when it is not known what comes of it."""

HOPELESS = 1 / 3
"""How likely a token is to be accepted, at most, where it is not tried how long drafts take."""


class Pace:
    """Of one answer; `fixed` is how many tokens are to be drafted whatever comes of it."""

    def __init__(self, times: StepTimes, fixed: int | None = None) -> None:
        self._times, self._fixed = times, fixed
        self._accepted, self._refused = 2.0, 1.0
        """Of the latest drafts, tokens accepted, and drafts of which one was refused; at first, as
        many as a draft is expected to have."""
        self._resting, self._rest = 1, REST
        """Tokens for which it rests now, and the next time; at first, one that tells anew how long
        a step takes, which nobody learns while all drafts pay."""

    @property
    def count(self) -> int:
        """How many tokens to draft now; 0 for none."""
        if self._fixed is not None:
            return self._fixed
        if self._resting or self._times.step is None:
            return 0
        return self._best() or TRIAL

    @property
    def _rate(self) -> float:
        """How likely a drafted token is to be accepted."""
        return self._accepted / (self._accepted + self._refused)

    def _best(self) -> int:
        """The count that gives most tokens a second, 0 if a step alone gives more."""
        step = self._times.step
        if step is None or not self._times.known:
            return 0
        (base, each), rate = self._times.line, self._rate
        best, most = 0, 1 / step
        tokens = chance = 1.0
        for count in range(1, MOST + 1):
            chance *= rate
            tokens += chance
            speed = tokens / (base + count * each)
            if speed > most:
                best, most = count, speed
        return best

    def stepped(self, seconds: float) -> None:
        """A step without a draft took so long."""
        self._times.stepped(seconds)
        self._resting = max(0, self._resting - 1)

    def drafted(self, count: int, accepted: int, seconds: float) -> None:
        """A step with a draft of `count` tokens did, of which so many were accepted."""
        self._times.drafted(count, seconds)
        self._accepted = MEMORY * self._accepted + accepted
        self._refused = MEMORY * self._refused + (accepted < count)
        if self._best():
            self._rest = REST
            return
        rests = self._times.known or self._rate < HOPELESS
        if rests:
            self._resting = self._rest
        if rests or not accepted:  # one that is put off is the longer
            self._rest = min(2 * self._rest, LONGEST_REST)
