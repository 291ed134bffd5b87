"""One budget of bytes for all that is kept between requests."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import mlx.core as mx


class Kept(Protocol):
    """Something kept for later; what it is counts by identity."""

    nbytes: int


class Budget:
    """Counts what is kept; when that is too much, the least recently used has to go."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._kept: OrderedDict[int, tuple[Kept, Callable[[], None]]] = OrderedDict()

    def add(self, item: Kept, drop: Callable[[], None]) -> None:
        """Count an item, and make room if there is too little: `drop` forgets what must go.

        What is larger than the whole budget is dropped at once, and nothing else for it.
        """
        if item.nbytes > self.max_bytes:
            drop()
            return
        self._kept[id(item)] = item, drop
        self.nbytes += item.nbytes
        if self.nbytes > self.max_bytes:
            self.shrink(self.max_bytes)

    def shrink(self, nbytes: int) -> None:
        """Let go of the least recently used until no more than `nbytes` are kept."""
        while self._kept and self.nbytes > nbytes:
            oldest, forget = next(iter(self._kept.values()))
            self.remove(oldest)
            forget()
        mx.clear_cache()

    def touch(self, item: Kept) -> None:
        """Let an item be the most recently used."""
        self._kept.move_to_end(id(item))

    def remove(self, item: Kept) -> None:
        """Count an item no longer. Raises KeyError for one that is not counted."""
        del self._kept[id(item)]
        self.nbytes -= item.nbytes
