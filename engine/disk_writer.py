"""The thread that writes files, so that nobody waits for a disk."""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

log = logging.getLogger("sightline")

Write = Callable[[], int]
"""Writes something and returns how many bytes."""


class DiskWriter:
    """Does one write after another on a thread of its own, which the first one starts."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Write, Future[int]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.bytes_written = 0
        self.waiting = 0
        """Writes that are not done yet; the engine's thread alone adds to them."""
        self._counting = threading.Lock()

    def submit(self, write: Write, future: "Future[int] | None" = None) -> "Future[int]":
        """Queue a write; the future, ours or the one given, has its result or its error."""
        future = Future() if future is None else future
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="sightline-disk", daemon=True)
            self._thread.start()
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
            write, future = job
            try:
                written = write()
                self.bytes_written += written
                future.set_result(written)
            except BaseException as error:
                future.set_exception(error)
            with self._counting:
                self.waiting -= 1
            del job, write, future  # they hold KV caches
