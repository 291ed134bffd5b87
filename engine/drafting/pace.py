"""How many tokens to draft: as many as pay, by what was accepted and how long it took."""

MOST = 16
"""Tokens that are drafted at once, at most: behind them, a step takes longer for each."""

REST, LONGEST_REST = 32, 256
"""Tokens for which nothing is drafted after it did not pay, doubled each time up to the latter: a
draft that is never accepted costs a step or two in so many."""

MEMORY = 0.85
"""How much of what was known is remembered at each draft: some six of them decide."""

TRIAL = 3
"""Tokens of a draft when it is not known what comes of it."""


class Pace:
    """Of one answer; `fixed` is how many tokens are to be drafted whatever comes of it."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._step: float | None = None
        """Seconds of a step without a draft."""
        self._accepted, self._refused = 1.0, 0.5
        """Of the latest drafts, tokens accepted, and drafts of which one was refused."""
        self._drafts = self._counts = self._squares = self._seconds = self._products = 0.0
        """Of the latest drafts: how many, and sums over them of their tokens, those squared, their
        seconds, and both multiplied; for the line of seconds by tokens that fits them best."""
        self._resting, self._rest = 0, REST
        """Tokens for which it rests now, and the next time."""

    @property
    def count(self) -> int:
        """How many tokens to draft now; 0 for none."""
        if self._fixed is not None:
            return self._fixed
        if self._step is None or self._resting:
            return 0
        return self._best() or TRIAL

    def _best(self) -> int:
        """The count that gives most tokens a second, 0 if a step alone gives more."""
        if self._step is None or not self._drafts:
            return 0
        base, each = self._line(self._step)
        rate = self._accepted / (self._accepted + self._refused)
        best, most = 0, 1 / self._step
        tokens = chance = 1.0
        for count in range(1, MOST + 1):
            chance *= rate
            tokens += chance
            speed = tokens / (base + count * each)
            if speed > most:
                best, most = count, speed
        return best

    def _line(self, step: float) -> tuple[float, float]:
        """Seconds of a step with a draft of no tokens, and of each token.

        By least squares, with a step without a draft as one of none among them, which also tells
        the two apart where all drafts were of one length.
        """
        drafts, seconds = self._drafts + 1, self._seconds + step
        spread = drafts * self._squares - self._counts**2
        each = max(0.0, (drafts * self._products - self._counts * seconds) / spread)
        return (seconds - each * self._counts) / drafts, each

    def stepped(self, seconds: float) -> None:
        """A step without a draft took so long."""
        step = seconds if self._step is None else self._step
        self._step = MEMORY * step + (1 - MEMORY) * seconds
        self._resting = max(0, self._resting - 1)

    def drafted(self, count: int, accepted: int, seconds: float) -> None:
        """A step with a draft of `count` tokens did, of which so many were accepted."""
        self._accepted = MEMORY * self._accepted + accepted
        self._refused = MEMORY * self._refused + (accepted < count)
        self._drafts = MEMORY * self._drafts + 1
        self._counts = MEMORY * self._counts + count
        self._squares = MEMORY * self._squares + count * count
        self._seconds = MEMORY * self._seconds + seconds
        self._products = MEMORY * self._products + count * seconds
        if self._best():
            self._rest = REST
        else:
            self._resting, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
