"""Notices that the other ranks do not answer any more."""

import threading
import time
from collections.abc import Callable

SECONDS = 300.0
"""How long a rank may take from one exchange to the next: for a chunk of a prompt, or an image."""


class Watch:
    """A thread that looks at the clock."""

    def __init__(self, stuck: Callable[[float], None]) -> None:
        """`stuck` is called, once, with how many seconds it took."""
        self._stuck = stuck
        self._latest: float | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._look, name="sightline-ranks", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """An exchange begins: the next has to come in time."""
        self._latest = time.monotonic()

    def rest(self) -> None:
        """Nothing is waited for."""
        self._latest = None

    def end(self) -> None:
        """Look no more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _look(self) -> None:
        with self._changed:
            while not self._ended:
                latest = self._latest
                if latest is not None and time.monotonic() - latest > SECONDS:
                    break
                self._changed.wait(min(1.0, SECONDS / 4))
            else:
                return
        self._stuck(SECONDS)
