"""How many tokens to draft: as many as pay, by what was accepted and how long it took."""

MOST = 16
"""Tokens that are drafted at once, at most: behind them, a step takes longer for each."""

REST, LONGEST_REST = 32, 1024
"""Tokens for which nothing is drafted after it did not pay, doubled each time up to the latter: a
draft that is never accepted costs a step or two in so many."""

MEMORY = 0.8
"""How much of what was known is remembered at each draft: some five of them decide."""

START = 4
"""Tokens of the first draft."""


class Pace:
    """Of one answer; `fixed` is how many tokens are to be drafted whatever comes of it."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._accepted, self._refused = 1.0, 0.5
        """Of the latest drafts, tokens accepted, and drafts of which one was refused."""
        self._step: float | None = None
        """Seconds of a step without a draft."""
        self._base: float | None = None
        """Those of a step with one, beside `_each` for each token of it."""
        self._each: float | None = None
        self._resting = 0
        self._rest = REST

    @property
    def count(self) -> int:
        """How many tokens to draft now; 0 for none."""
        if self._fixed is not None:
            return self._fixed
        if self._resting > 0 or self._step is None:
            return 0
        return START if self._base is None else self._best()

    def _best(self) -> int:
        """The count that gives most tokens a second, 0 if a step alone gives more."""
        assert self._step is not None
        best, most = 0, 1 / self._step
        rate = self._accepted / (self._accepted + self._refused)
        tokens = chance = 1.0
        for count in range(1, MOST + 1):
            chance *= rate
            tokens += chance
            speed = tokens / self._seconds(count)
            if speed > most:
                best, most = count, speed
        return best

    def _seconds(self, count: int) -> float:
        assert self._base is not None
        assert self._each is not None
        return self._base + count * self._each

    def stepped(self, seconds: float) -> None:
        """A step without a draft took so long."""
        self._step = seconds if self._step is None else _mixed(self._step, seconds)
        self._resting -= 1

    def drafted(self, count: int, accepted: int, seconds: float) -> None:
        """A step with a draft of `count` tokens did, of which so many were accepted."""
        self._accepted = MEMORY * self._accepted + accepted
        self._refused = MEMORY * self._refused + (accepted < count)
        if self._base is None or self._each is None:
            base = seconds if self._step is None else min(self._step, seconds)
            self._base, self._each = base, (seconds - base) / count
        else:
            # What it took more or less than was thought is laid to both, as they had their parts.
            share = max(0.5, min(2.0, seconds / self._seconds(count)))
            mixed = _mixed(1.0, share)
            self._base, self._each = self._base * mixed, self._each * mixed
        if self._fixed is None and self._step is not None:
            if self._best():
                self._rest = REST
            else:
                self._resting, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)


def _mixed(known: float, new: float) -> float:
    return MEMORY * known + (1 - MEMORY) * new
