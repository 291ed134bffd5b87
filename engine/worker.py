"""The one thread on which all MLX work of an engine happens."""

import atexit
import logging
import os
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from engine.checks import check_process
from engine.generation import Generation, never_started
from engine.memory.disk_writer import WriterThread
from vision_add_ons.errors import EngineClosed, EngineFailed

if TYPE_CHECKING:
    from engine.decoding.alone import Alone
    from engine.decoding.desk import Desk
    from engine.memory.memory import Memory
    from model_kit.kit import ModelKit


log = logging.getLogger("sightline")

Result = TypeVar("Result")


@dataclass(eq=False)
class Task:
    """Something other than an answer that the engine's thread has to do.

    It waits for all answers under way if it is `exclusive`, else for those of `owner` alone, if
    that is not None.
    """

    work: Callable[["Memory"], Any]
    future: Future[Any]
    exclusive: bool
    owner: object

    @property
    def done(self) -> bool:
        """Whether it was done."""
        return self.future.done()

    def waits_for(self, other: Generation) -> bool:
        """Whether an answer under way has to end first."""
        return self.exclusive or (self.owner is not None and other.owner is self.owner)

    def run(self, memory: "Memory") -> None:
        """Do it; whatever comes of it is the future's."""
        try:
            result = self.work(memory)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Worker:
    """Loads a model on a thread of its own, then answers requests there, client by client.

    Kept apart from `Engine` so that an engine that nobody holds any more can be collected while
    its thread still runs.
    """

    def __init__(
        self,
        load: Callable[[Callable[[], None]], "ModelKit"],
        remember: Callable[["ModelKit"], "Memory"],
        parallel: int = 1,
    ) -> None:
        """`load` is given a function to call now and then: it raises once `close` was called.

        `remember` makes what is kept between requests; `parallel` are answered at once.
        """
        self._load = load
        self._remember = remember
        self._parallel = parallel
        self._waiting: deque[Generation | Task] = deque()
        self._running: list[Generation | Task] = []
        """What the thread has begun, in that order."""
        self._changed = threading.Condition()
        self._closed = False
        """No request is taken any more."""
        self._ended = False
        """Nor is anything else: the thread has nothing left to do."""
        self._loaded = threading.Event()
        self._failure: BaseException | None = None
        """What loading raised."""
        self._death: BaseException | None = None
        """What ended the thread before its time."""
        self.process = os.getpid()
        """The process that has the thread; a forked one has it not."""
        self.kit: ModelKit | None = None
        self.memory: Memory | None = None
        self.thread = threading.Thread(target=self._main, name="sightline-engine", daemon=True)
        self.thread.start()
        # A process that ends must wait for the thread, or MLX aborts it.
        atexit.register(self.close)

    def wait_until_loaded(self) -> "ModelKit":
        """The loaded model; raises what loading raised."""
        self._loaded.wait()
        kit = self.kit
        if self._failure is not None:
            self.thread.join()  # a process must not end while the thread is tidying up
            raise self._failure
        if kit is None:
            raise self._refusal()
        return kit

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine was closed while its model was loading")

    def submit(self, generation: Generation) -> None:
        """Have a request answered in its client's turn; one that is cancelled already ends here.

        Raises `EngineClosed`.
        """
        generation.on_cancel = self._withdraw
        self._put(generation)
        if generation.cancelled:
            self._withdraw(generation)

    def call(
        self,
        work: "Callable[[Memory], Result]",
        *,
        exclusive: bool = True,
        owner: object = None,
    ) -> "Future[Result]":
        """Have something done on the engine's thread, in its turn; the future has what comes of it.

        What is `exclusive` is done when no answer is under way; what is not, beside others than
        those of `owner`. Raises `EngineClosed`. What was queued before is done even if the engine
        is closed, and what comes while it is closing too.
        """
        task = Task(work, Future(), exclusive, owner)
        task.future.set_running_or_notify_cancel()  # it cannot be called off any more
        self._put(task)
        return task.future

    def _put(self, job: Generation | Task) -> None:
        check_process(self.process)
        with self._changed:
            if self._ended or (self._closed and isinstance(job, Generation)):
                raise self._refusal()
            self._waiting.insert(self._place(job) if self._waiting else 0, job)
            self._changed.notify()

    def _refusal(self) -> EngineClosed:
        if self._death is None:
            return EngineClosed("this engine is closed; load the model again")
        name = type(self._death).__name__
        error = EngineFailed(f"this engine's thread ended by {name}; load the model again")
        error.__cause__ = self._death
        return error

    def _place(self, job: Generation | Task) -> int:
        """Where among those that wait `job` comes: nobody's second before another's first.

        What was queued after a task is done after it.
        """
        others = [*self._running, *self._waiting]
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
        return max(0, place - len(others) + len(self._waiting))

    def close(self) -> None:
        """Cancel all answers, keep what is to be kept, and end the thread.

        Safe to call twice, and from any thread.
        """
        if os.getpid() != self.process:
            return  # the thread is another process's, and so may be the lock
        with self._changed:
            self._closed = True
            waiting = [job for job in self._waiting if isinstance(job, Generation)]
            self._waiting = deque(j for j in self._waiting if not isinstance(j, Generation))
            for job in self._running:
                if isinstance(job, Generation):
                    job.cancel()
            self._changed.notify()
        for generation in waiting:
            generation.finish(never_started(generation))
        if self.wait_for_end():
            atexit.unregister(self.close)

    def wait_for_end(self) -> bool:
        """Wait until a thread that is to end has ended; False, at once, where it waits for us."""
        current = threading.current_thread()
        if current is self.thread or isinstance(current, WriterThread):
            return False
        self.thread.join()
        return True

    def _main(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            log.critical("an engine's thread ended before its time", exc_info=error)
            error.__traceback__ = None  # its frames hold the model
            self._death = error
        finally:
            self._end_all()
            self._loaded.set()
            left = [weakref.ref(x) for x in (self.kit, self.memory) if x is not None]
            self.kit = self.memory = None
            if "mlx.core" in sys.modules:
                import mlx.core as mx

                from engine.memory.release import release_memory

                release_memory(left)
                # MLX keeps streams and compiled functions for each thread. Left to the thread's
                # own end, their destructors ask for the interpreter's lock, which aborts the
                # process if it is ending too.
                mx.clear_streams()

    def _end_all(self) -> None:
        """Leave nobody waiting for a thread that is gone."""
        with self._changed:
            self._closed = self._ended = True
            left = [*self._running, *self._waiting]
            self._waiting.clear()
            self._running.clear()
        for job in left:
            try:
                self._end(job, self._refusal())
            except BaseException:
                log.exception("a callback failed at the end of an engine")

    def _end(self, job: Generation | Task, error: BaseException) -> None:
        if isinstance(job, Generation):
            job.finish(never_started(job, error))
        elif not job.done:
            job.future.set_exception(error)

    def _serve(self) -> None:
        try:
            self.kit = self._load(self._check_open)
            self.memory = self._remember(self.kit)
            desk = self._desk(self.kit, self.memory)
        except BaseException as error:
            self._failure = error
            return
        self._loaded.set()
        admit = partial(self._admit, desk, self.memory)
        try:
            while self._wait():
                admit()
                desk.step(admit)
                if self.memory.cache_dir is not None and self._is_idle():
                    _keep_grown(self.memory)
        finally:
            self.memory.close()

    def _desk(self, kit: "ModelKit", memory: "Memory") -> "Desk | Alone":
        from engine.decoding.desk import desk_for

        return desk_for(kit, memory, self._parallel)

    def _wait(self) -> bool:
        """Wait until there is something to do; whether there ever will be."""
        with self._changed:
            self._running = [job for job in self._running if not job.done]
            while not (self._running or self._waiting or self._closed):
                self._changed.wait()
            self._ended = not (self._running or self._waiting)
            return not self._ended

    def _is_idle(self) -> bool:
        """Whether there is nothing to do now."""
        return not self._waiting and all(job.done for job in self._running)

    def _admit(self, desk: "Desk | Alone", memory: "Memory") -> bool:
        """Begin what has its turn, as far as there is room; whether there was anything."""
        # A frame of its own: while it waits, the thread must not hold the previous generation and
        # its pictures.
        begun = False
        while (job := self._next(desk)) is not None:
            begun = True
            try:
                if isinstance(job, Task):
                    job.run(memory)
                elif self._unwanted(job):
                    job.finish(never_started(job))
                else:
                    desk.admit(job)
            except BaseException as error:
                # The thread must outlive whatever went wrong, and what was asked must end.
                log.debug("something went wrong beside an answer", exc_info=error)
                self._end(job, error)
        return begun

    def _unwanted(self, job: Generation) -> bool:
        """Whether it was cancelled before its turn."""
        return job.cancelled

    def _next(self, desk: "Desk | Alone") -> Generation | Task | None:
        """What has its turn: a request when there is room, a task when what it waits for is done.

        Requests may go before others that there is no room for, and before a task that waits for
        one answer; nothing goes before a task that waits for all.
        """
        with self._changed:
            self._running = [job for job in self._running if not job.done]
            under_way = [job for job in self._running if isinstance(job, Generation)]
            passed = False
            for job in self._waiting:
                if isinstance(job, Generation):
                    ready = desk.takes(job, len(under_way))
                else:
                    ready = not (passed or any(map(job.waits_for, under_way)))
                if ready:
                    self._waiting.remove(job)
                    self._running.append(job)
                    return job
                if isinstance(job, Task) and job.exclusive:
                    return None
                passed = True
            return None

    def _withdraw(self, generation: Generation) -> None:
        """End a cancelled generation that has not started, without waiting for its turn."""
        if os.getpid() != self.process:
            return
        with self._changed:
            if generation not in self._waiting:
                return
            self._waiting.remove(generation)
        generation.finish(never_started(generation))


def _keep_grown(memory: "Memory") -> None:
    try:
        memory.keep_grown()
    except Exception:
        log.exception("KV caches could not be written to the disk")
