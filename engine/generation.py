"""One answer under way: iterate its events, wait for its end, or cancel it; in asyncio too."""

import logging
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Hashable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from engine.bell import Bell
from engine.checks import check_process, seconds
from engine.events import Event, Finished
from engine.options import GenerationOptions

if TYPE_CHECKING:
    from engine.decoding.guide import AnswerGuide
    from engine.decoding.parts import Parts
    from engine.prompts.builder import Prompt

log = logging.getLogger("sightline")

SomeEvent = TypeVar("SomeEvent", bound=Event)


class Generation:
    """Iterate it for its events; safe to use from any thread.

    Events wait here until they are fetched: not iterating holds nothing up, and leaving the loop
    early cancels nothing (`cancel` does). In asyncio, `async for event in generation` iterates and
    `await generation` is `result`; neither takes a thread, however many answers are waited for, and
    a task that is cancelled meanwhile cancels no answer. Each event is given out once: several
    loops over one answer, of either kind, share its events, and all of them end.
    """

    def __init__(
        self,
        prompt: "Prompt",
        options: GenerationOptions,
        owner: object = None,
        on_finish: Callable[[Finished], None] | None = None,
        submitted: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self.prompt = prompt
        """What is asked, ready for the decoder."""
        self.options = options
        """How it is answered."""
        self.owner = owner
        """Whose history this continues: its own older cache is taken over, not copied."""
        self.on_cancel: Callable[[Generation], None] | None = None
        """Set by whoever queues it, to take it out of the queue."""
        self.engine: object = None
        """Held so that an engine lives until its last answer is there."""
        self.client: Hashable = None
        """Who asked; see `Request.client`."""
        self.guide: AnswerGuide | None = None
        """What holds the answer to its schema, and its thought to its length."""
        self.parts: Parts | None = None
        """What tells its thought from what it says; None for a plain answer."""
        self.submitted = time.perf_counter() if submitted is None else submitted
        """When it was asked, in seconds of `time.perf_counter`."""
        self._on_finish = on_finish
        self._on_event = on_event
        self._callback_failed = False
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._bells: dict[str, Bell] = {}
        """What wakes coroutines that wait for the next "event" or the "end", once any do."""
        self._cancelled = threading.Event()
        self._cancelled_from_outside = cancel
        self._ended = threading.Event()
        self._finished: Finished | None = None
        self._finishing = threading.Lock()
        self._process = os.getpid()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        check_process(self._process)
        event = self._events.get()
        if event is None:
            self._deliver(None)  # for whoever asks again
            raise StopIteration
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        check_process(self._process)
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                bell = self._bells.setdefault("event", Bell())
                await bell.wait(lambda: not self._events.empty())
                continue
            if event is None:
                self._deliver(None)
                raise StopAsyncIteration
            return event

    def __await__(self) -> Generator[Any, None, Finished]:
        """The final event, or the error that ended the generation, as `result` has it."""
        check_process(self._process)
        while not self._ended.is_set():
            bell = self._bells.setdefault("end", Bell())
            yield from bell.wait(self._ended.is_set).__await__()
        return self.result()

    def cancel(self) -> None:
        """End the answer after the token or prefill step at work. What was read stays cached.

        Returns at once; the final event follows, `cancelled` unless the end came first. Does
        nothing in a process that was forked from the one that asked.
        """
        if os.getpid() != self._process:
            return
        self._cancelled.set()
        on_cancel = self.on_cancel
        if on_cancel is not None:
            on_cancel(self)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called, or the event is set that was given for this."""
        outside = self._cancelled_from_outside
        return self._cancelled.is_set() or (outside is not None and outside.is_set())

    @property
    def done(self) -> bool:
        """Whether the final event is there."""
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Finished:
        """Wait for the end and return the final event.

        Raises the error that ended the generation, or TimeoutError after `timeout` seconds;
        `OptionError` for a `timeout` that is no time, `ForkedProcess` in a process that was forked
        from the one that asked.
        """
        check_process(self._process)
        timeout = seconds(timeout)
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no answer within {timeout} seconds")
        assert self._finished is not None
        if self._finished.error is not None:
            raise self._finished.error
        return self._finished

    # --- for the engine's thread ---------------------------------------------------------------

    def emit(self, event: Event) -> None:
        """Deliver an event that is not the final one."""
        if self._on_event is None:
            self._deliver(event)
        else:
            self._call(self._on_event, event)

    def finish(self, finished: Finished) -> None:
        """Deliver the final event; only the first call counts."""
        with self._finishing:
            if self._finished is not None:
                return
            self._finished = finished
        if self._on_finish is not None:
            self._call(self._on_finish, finished)
        self._ended.set()
        if "end" in self._bells:
            self._bells["end"].ring()
        self.emit(finished)
        self._deliver(None)
        # A finished answer that is kept must not keep a model in memory.
        self._on_finish = self._on_event = self.on_cancel = self.engine = None

    def _deliver(self, event: Event | None) -> None:
        self._events.put(event)
        if "event" in self._bells:
            self._bells["event"].ring()

    def _call(self, callback: Callable[[SomeEvent], None], event: SomeEvent) -> None:
        try:
            callback(event)
        except BaseException:
            # It may run on the engine's thread, or on that of whoever cancels or closes: none of
            # them can do anything about it, and this answer and all others must still end. What
            # fails for one token fails for each: it is told once, and then of the end.
            if not self._callback_failed or isinstance(event, Finished):
                self._callback_failed = True
                log.exception("a callback failed; the answer goes on")


def never_started(generation: Generation, error: BaseException | None = None) -> Finished:
    """The end of an answer of which nothing was made: cancelled, or failed by `error`."""
    return Finished(
        finish_reason="error" if error else "cancelled",
        answer="",
        tokens=(),
        prompt_tokens=len(generation.prompt.tokens),
        cached_tokens=0,
        disk_tokens=0,
        images_encoded=0,
        images_reused=0,
        queue_seconds=time.perf_counter() - generation.submitted,
        prefill_seconds=0.0,
        time_to_first_token=None,
        tokens_per_second=0.0,
        seed=generation.options.seed or 0,
        error=error,
    )
