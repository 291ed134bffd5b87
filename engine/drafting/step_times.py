"""How long steps take, with drafts and without: what tells how many drafted tokens pay."""

import statistics
from collections import deque
from itertools import combinations

KEPT = 16
"""Of either kind of step, the latest: a history grows, and a machine gets other work."""

ENOUGH = 3
"""Steps of a kind by which something can be said of it."""


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
        """Of a step without a draft; None until enough are known."""
        return statistics.median(self._steps) if len(self._steps) >= ENOUGH else None

    @property
    def known(self) -> bool:
        """Whether there is enough to say what pays."""
        return min(len(self._steps), len(self._drafts)) >= ENOUGH

    def stepped(self, seconds: float) -> None:
        """A step without a draft took so long."""
        self._steps.append(seconds)

    def drafted(self, count: int, seconds: float) -> None:
        """A step with a draft of `count` tokens did, at least one."""
        self._drafts.append((count, seconds))
        self._line = None

    @property
    def line(self) -> tuple[float, float]:
        """A step with a draft of no tokens, and what each token adds. Only where they are `known`.

        The median of the slopes between any two, after Theil and Sen, without those that took more
        than twice what is usual: one of a length of its own would weigh too much. A step without a
        draft is one of them, which tells the two apart where all drafts were of one length. Found
        anew after drafts alone: this is asked before each token.
        """
        if self._line is None:
            step = self.step
            assert step is not None
            usual = statistics.median((seconds - step) / count for count, seconds in self._drafts)
            drafts = [
                (count, seconds)
                for count, seconds in self._drafts
                if seconds <= 2 * (step + max(0.0, usual) * count)
            ]
            slopes = [
                (b[1] - a[1]) / (b[0] - a[0])
                for a, b in combinations([(0, step), *drafts], 2)
                if a[0] != b[0]
            ]
            each = max(0.0, statistics.median(slopes))
            base = statistics.median(seconds - each * count for count, seconds in drafts)
            # Of few drafts, some interrupted, the slope may be so steep that nothing is left.
            self._line = max(base, step), each
        return self._line
