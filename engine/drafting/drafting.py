"""One answer's drafts: what guesses, how much of it is tried, and what came of it."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import mlx.core as mx

from engine.decoding.lane import Lane
from engine.drafting.pace import Pace
from engine.drafting.step_times import StepTimes

log = logging.getLogger("sightline")

T = TypeVar("T")


class Drafter(Protocol):
    """What guesses how one answer goes on. For the engine's thread alone."""

    def ready(self, history: Sequence[int]) -> bool:
        """Whether it is worth waiting for the token behind `history`, which may be being computed,
        to guess what follows that. `history` is what it was at the call before, and more.

        What is to be read only once is read here, and counts for no draft's time.
        """

    def draft(self, history: Sequence[int], last: mx.array, count: int) -> mx.array | None:
        """What may follow `history` and the `last` token, [1]: at most `count` ids; None for none.

        Called if it is `ready` for this history.
        """

    def close(self, history: Sequence[int]) -> None:
        """The answer has ended; `history` is all that was said."""


class Drafting:
    """Steps of an answer that is decoded by itself. For the engine's thread alone."""

    def __init__(
        self, drafter: Drafter, history: Sequence[int], times: StepTimes, fixed: int | None
    ) -> None:
        """`history` is the prompt without its pictures; `fixed` is how many tokens are drafted at
        once, None for as many as pay by the engine's `times`."""
        self._drafter = drafter
        self._history = list(history)
        self._pace = Pace(times, fixed)
        self._failed = False
        self._plain = False
        """Whether the next step was begun by one without a draft, and nobody waited for it yet."""

    def step(self, lane: Lane, left: int) -> list[tuple[int, int]]:
        """As `Lane.step`, and more tokens where drafts were right; at most `left`."""
        count = 0 if self._failed else min(self._pace.count, left - 1)
        if count > 0 and self._try(lambda: self._drafter.ready(self._history)):
            mx.eval(lane.next)  # a step that was begun before the clock is none of this one's time
            self._plain = False
            started = time.perf_counter()
            drafted = self._try(lambda: self._drafter.draft(self._history, lane.next, count))
            if drafted is not None:
                told = lane.verify(drafted)
                self._pace.drafted(len(drafted), len(told) - 1, time.perf_counter() - started)
                return told
        started = time.perf_counter()
        told = lane.step()
        if self._plain:  # else there was nothing of it that was left to wait for
            self._pace.stepped(time.perf_counter() - started)
        self._plain = True
        return told

    def _try(self, ask: Callable[[], T]) -> T | None:
        """What the drafter says; None from now on if it fails, for the answer does not need it."""
        try:
            return ask()
        except Exception:
            log.warning("drafting failed; the answer goes on without", exc_info=True)
            self._failed = True
            return None

    def said(self, token: int) -> None:
        """A token that was delivered, drafted or not."""
        self._history.append(token)

    def close(self) -> None:
        """The answer has ended."""
        try:
            if not self._failed:
                self._drafter.close(self._history)
        except Exception:
            log.warning("what was read for drafts is not kept", exc_info=True)
