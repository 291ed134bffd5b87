"""The thread that writes files, so that nobody waits for a disk."""

import logging
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

log = logging.getLogger("sightline")

Write = Callable[[], int]
"""Writes something and returns how many bytes."""


class WriterThread(threading.Thread):
    """A class of its own, by which others know that they must not wait on it for its engine."""


class DiskWriter:
    """Does one write after another on a thread of its own, which the first one starts."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Write, Future[int]] | None] = queue.SimpleQueue()
        self._thread: WriterThread | None = None
        self._counting = threading.Lock()
        self.bytes_written = 0
        self.waiting = 0
        """Writes that are not done yet."""

    def start(self) -> None:
        """Start the thread; not every version of Python can when the process is ending."""
        if self._thread is None:
            self._thread = WriterThread(target=self._main, name="sightline-disk", daemon=True)
            self._thread.start()

    def submit(self, write: Write, future: "Future[int] | None" = None) -> "Future[int]":
        """Queue a write; the future, ours or the one given, has its result or its error."""
        future = Future() if future is None else future
        self.start()
        with self._counting:
            self.waiting += 1
        self._jobs.put((write, future))
        return future

    def close(self) -> None:
        """Wait until everything is written."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _main(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._do(*job)
            except BaseException:  # an app's own: what it hung on the future may raise anything
                log.exception("what was to be called after a write raised")
            del job  # it holds KV caches
            with self._counting:
                self.waiting -= 1

    def _do(self, write: Write, future: "Future[int]") -> None:
        with suppress(InvalidStateError):  # whoever holds the future ended it: nothing ends us
            try:
                written = write()
                self.bytes_written += written
            except BaseException as error:
                # The frames hold KV caches, and whoever keeps the error would keep them.
                traceback.clear_frames(error.__traceback__)
                error.__traceback__ = None
                future.set_exception(error)
            else:
                future.set_result(written)
