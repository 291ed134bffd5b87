"""How long steps take, with drafts and without: what tells how many drafted tokens pay."""

import statistics
from collections import deque
from itertools import combinations

KEPT = 16
"""Of either kind of step, the latest: a history grows, and a machine gets other work."""

ENOUGH = 3
"""Drafts by which something can be said."""


class StepTimes:
    """Of one engine, from answer to answer: in seconds.

    A step that a machine interrupts, or for which it prepares kernels that were never used before,
    can take fifty times as long as others, so medians are what counts.
    """

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=KEPT)
        self._drafts: deque[tuple[int, float]] = deque(maxlen=KEPT)
        """Drafted tokens, and the seconds of a step with them."""
        self._line: tuple[float, float] | None = None

    @property
    def step(self) -> float | None:
        """Of a step without a draft; None until one is known."""
        return statistics.median(self._steps) if self._steps else None

    @property
    def known(self) -> bool:
        """Whether there is enough to say what pays."""
        return bool(self._steps) and len(self._drafts) >= ENOUGH

    def stepped(self, seconds: float) -> None:
        """A step without a draft took so long."""
        self._steps.append(seconds)
        self._line = None

    def drafted(self, count: int, seconds: float) -> None:
        """A step with a draft of `count` tokens did, at least one."""
        self._drafts.append((count, seconds))
        self._line = None

    @property
    def line(self) -> tuple[float, float]:
        """A step with a draft of no tokens, and what each token adds.

        The median of the slopes between any two, after Theil and Sen. A step without a draft is one
        of them, which tells the two apart where all drafts were of one length.
        """
        if self._line is None:
            step = self.step
            assert step is not None
            points = [(0, step), *self._drafts]
            slopes = [
                (b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if a[0] != b[0]
            ]
            each = max(0.0, statistics.median(slopes))
            base = statistics.median(seconds - each * count for count, seconds in self._drafts)
            self._line = base, each
        return self._line
