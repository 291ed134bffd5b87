"""An answer as the event loop sees it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from engine.events import Event, Finished
from engine.generation import Generation


class Tick:
    """There was nothing to tell for a while."""


class Answer:
    """One answer, whose events the engine's own thread hands to the loop.

    To be made on the loop; `tell` is what the engine is given to call. A thread in between would
    cost a change of threads for each token, and wait for the interpreter's lock once more.
    """

    def __init__(self) -> None:
        self._generation: Generation | None = None
        self._cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Tick] = asyncio.Queue()

    def begin(self, generation: Generation) -> None:
        """From any thread, also after `cancel`."""
        self._generation = generation
        if self._cancelled:
            generation.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    def tell(self, event: Event) -> None:
        # While the engine closes, the loop may be gone; then nobody asks any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self, tick_seconds: float) -> AsyncIterator[Event | Tick]:
        """All events up to `Finished`; a `Tick` whenever there was none for `tick_seconds`."""
        clock = _Clock(self._loop, tick_seconds, lambda: self._events.put_nowait(Tick()))
        try:
            while True:
                event = await self._events.get()
                clock.heard = self._loop.time()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            clock.timer.cancel()


class _Clock:
    """Calls `ring` whenever nothing was heard for `seconds`; one timer, however many events."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, ring: Callable[[], None]
    ) -> None:
        self._loop, self._seconds, self._ring = loop, seconds, ring
        self.heard = loop.time()
        self.timer = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        left = self.heard + self._seconds - self._loop.time()
        if left <= 0:
            self._ring()
            left = self._seconds
        self.timer = self._loop.call_later(left, self._look)
