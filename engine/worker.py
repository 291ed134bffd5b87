"""The one thread on which all MLX work of an engine happens."""

import atexit
import logging
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from engine.disk_writer import WriterThread
from engine.generation import Generation
from engine.generation import never_started as _never_started
from vision_add_ons.errors import EngineClosed

if TYPE_CHECKING:
    from engine.memory import Memory
    from engine.runner import Runner
    from model_kit.kit import ModelKit


log = logging.getLogger("sightline")

Task = Callable[["Memory"], None]
"""Something other than an answer that the engine's thread has to do."""


class Worker:
    """Loads a model on a thread of its own, then answers requests there, client by client.

    Kept apart from `Engine` so that an engine that nobody holds any more can be collected while
    its thread still runs.
    """

    def __init__(
        self,
        load: Callable[[Callable[[], None]], "ModelKit"],
        remember: Callable[["ModelKit"], "Memory"],
    ) -> None:
        """`load` is given a function to call now and then: it raises once `close` was called.

        `remember` makes what is kept between requests.
        """
        self._load = load
        self._remember = remember
        self._waiting: deque[Generation | Task] = deque()
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
        """Have a request answered in its client's turn. Raises `EngineClosed`."""
        generation.on_cancel = self._withdraw
        self._put(generation)

    def call(self, task: Task) -> None:
        """Have `task` done on the engine's thread, in its turn; what it raises is only logged.

        Raises `EngineClosed`. What was queued before is done even if the engine is closed.
        """
        self._put(task)

    def _put(self, job: Generation | Task) -> None:
        with self._changed:
            if self._closed:
                raise EngineClosed("this engine is closed; load the model again")
            self._waiting.insert(self._place(job), job)
            self._changed.notify()

    def _place(self, job: "Generation | Task") -> int:
        """Where in the queue `job` comes: nobody's second request before another's first.

        What was queued after a task is done after it.
        """
        others = [*filter(None, [self._current]), *self._waiting]
        if not isinstance(job, Generation):
            return len(self._waiting)
        own = sum(isinstance(o, Generation) and o.client == job.client for o in others)
        place, seen = 0, Counter[Hashable]()
        for i, other in enumerate(others, 1):
            if isinstance(other, Generation):
                seen[other.client] += 1
                if seen[other.client] > own + 1:
                    continue
            place = i
        return place - len(others) + len(self._waiting)

    def close(self) -> None:
        """Cancel all answers, keep what is to be kept, and end the thread.

        Safe to call twice, and from any thread.
        """
        with self._changed:
            self._closed = True
            waiting = [job for job in self._waiting if isinstance(job, Generation)]
            self._waiting = deque(j for j in self._waiting if not isinstance(j, Generation))
            if self._current is not None:
                self._current.cancel()
            self._changed.notify()
        for generation in waiting:
            generation.finish(_never_started(generation))
        current = threading.current_thread()
        if current is not self.thread and not isinstance(current, WriterThread):
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
            from engine.runner import Runner

            self.memory = self._remember(self.kit)
            runner = Runner(self.kit, self.memory)
        except BaseException as error:
            self._failure = error
            return
        self._loaded.set()
        try:
            while self._do_next(runner, self.memory):
                if not self._waiting:
                    self.memory.keep_grown()
        finally:
            self.memory.close()

    def _do_next(self, runner: "Runner", memory: "Memory") -> bool:
        # A frame of its own: while it waits, the thread must not hold the previous generation and
        # its pictures.
        job = self._next()
        if job is None:
            return False
        if not isinstance(job, Generation):
            try:
                job(memory)
            except Exception:
                log.exception("something went wrong between two answers")
        elif job.cancelled:
            job.finish(_never_started(job))
        else:
            try:
                runner.run(job)
            except BaseException as error:
                # The thread must outlive whatever went wrong, and the generation must end.
                job.finish(_never_started(job, error))
        return True

    def _next(self) -> "Generation | Task | None":
        with self._changed:
            self._current = None
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            self._current = job if isinstance(job, Generation) else None
            return job

    def _withdraw(self, generation: Generation) -> None:
        """End a cancelled generation that has not started, without waiting for its turn."""
        with self._changed:
            if generation not in self._waiting:
                return
            self._waiting.remove(generation)
        generation.finish(_never_started(generation))
