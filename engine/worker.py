"""The one thread on which all MLX work of an engine happens."""

import atexit
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.events import Finished
from engine.generation import Generation
from vision_add_ons.errors import EngineClosed

if TYPE_CHECKING:
    from engine.memory import Memory
    from engine.runner import Runner
    from model_kit.kit import ModelKit


class Worker:
    """Loads a model on a thread of its own, then answers requests there, first come first served.

    Kept apart from `Engine` so that an engine that nobody holds any more can be collected while
    its thread still runs.
    """

    def __init__(
        self, load: Callable[[Callable[[], None]], "ModelKit"], cache_bytes: Callable[[], int]
    ) -> None:
        """`load` is given a function to call now and then: it raises once `close` was called."""
        self._load = load
        self._cache_bytes = cache_bytes
        self._waiting: deque[Generation] = deque()
        self._current: Generation | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        self.kit: ModelKit | None = None
        self.memory: Memory | None = None
        self.thread = threading.Thread(target=self._main, name="sightline-engine", daemon=True)
        self.thread.start()
        # A process that ends must wait for the thread, or MLX aborts it.
        atexit.register(self.close)

    def wait_until_loaded(self) -> "ModelKit":
        """The loaded model; raises what loading raised."""
        self._loaded.wait()
        if self._failure is not None:
            self.thread.join()  # a process must not end while the thread is tidying up
            raise self._failure
        assert self.kit is not None
        return self.kit

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine was closed while its model was loading")

    def submit(self, generation: Generation) -> None:
        with self._changed:
            if self._closed:
                raise EngineClosed("this engine is closed; load the model again")
            generation.on_cancel = self._withdraw
            self._waiting.append(generation)
            self._changed.notify()

    def close(self) -> None:
        """Cancel everything and end the thread. Safe to call twice, and from any thread."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            if self._current is not None:
                self._current.cancel()
            self._changed.notify()
        for generation in waiting:
            generation.finish(_never_started(generation))
        if threading.current_thread() is not self.thread:
            self.thread.join()
        atexit.unregister(self.close)

    def _main(self) -> None:
        try:
            self._serve()
        finally:
            self._loaded.set()
            self.kit = self.memory = None
            if "mlx.core" in sys.modules:
                import mlx.core as mx

                # MLX keeps streams and compiled functions for each thread. Left to the thread's
                # own end, their destructors ask for the interpreter's lock, which aborts the
                # process if it is ending too.
                mx.clear_streams()

    def _serve(self) -> None:
        try:
            self.kit = self._load(self._check_open)
            from engine.memory import Memory
            from engine.runner import Runner

            self.memory = Memory(self.kit, self._cache_bytes())
            runner = Runner(self.kit, self.memory)
        except BaseException as error:
            self._failure = error
            return
        self._loaded.set()
        while self._answer_next(runner):
            pass

    def _answer_next(self, runner: "Runner") -> bool:
        # A frame of its own: while it waits, the thread must not hold the previous generation and
        # its pictures.
        generation = self._next()
        if generation is None:
            return False
        if generation.cancelled:
            generation.finish(_never_started(generation))
            return True
        try:
            runner.run(generation)
        except BaseException as error:
            # The thread must outlive whatever went wrong, and the generation must end.
            generation.finish(_never_started(generation, error))
        return True

    def _next(self) -> Generation | None:
        with self._changed:
            self._current = None
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._current = self._waiting.popleft()
            return self._current

    def _withdraw(self, generation: Generation) -> None:
        """End a cancelled generation that has not started, without waiting for its turn."""
        with self._changed:
            if generation not in self._waiting:
                return
            self._waiting.remove(generation)
        generation.finish(_never_started(generation))


def _never_started(generation: Generation, error: BaseException | None = None) -> Finished:
    return Finished(
        finish_reason="error" if error else "cancelled",
        error=error,
        answer="",
        tokens=(),
        prompt_tokens=len(generation.prompt.tokens),
        cached_tokens=0,
        images_encoded=0,
        images_reused=0,
        queue_seconds=time.perf_counter() - generation.submitted,
        prefill_seconds=0.0,
        time_to_first_token=None,
        tokens_per_second=0.0,
        seed=generation.options.seed or 0,
    )
