"""One budget of bytes for all that is kept between requests."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import mlx.core as mx


class Kept(Protocol):
    """Something kept for later; what it is counts by identity."""

    nbytes: int

    @property
    def owned(self) -> bool:
        """Whether a conversation that somebody holds will go on with it."""


class Budget:
    """Counts what is kept; when that is too much, the least recently used has to go.

    What nobody owns goes before anything that somebody does.
    """

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
        self.shrink(self.max_bytes)

    def shrink(self, nbytes: int) -> None:
        """Let go of what is needed least until no more than `nbytes` are kept."""
        if self.nbytes <= nbytes:
            return
        while self._kept and self.nbytes > nbytes:
            oldest = next(iter(self._kept.values()))
            item, forget = next((k for k in self._kept.values() if not k[0].owned), oldest)
            self.remove(item)
            forget()
        mx.clear_cache()

    def touch(self, item: Kept) -> None:
        """Let an item be the most recently used."""
        self._kept.move_to_end(id(item))

    def recount(self, item: Kept, nbytes: int) -> None:
        """Count an item as `nbytes` from now on, if it is counted at all."""
        if id(item) in self._kept:
            self.nbytes += nbytes - item.nbytes
        item.nbytes = nbytes

    def remove(self, item: Kept) -> None:
        """Count an item no longer, if it is counted at all."""
        if self._kept.pop(id(item), None) is not None:
            self.nbytes -= item.nbytes

    def clear(self) -> None:
        """Know of nothing any more: what drops an item holds its keeper, which holds all items."""
        self._kept.clear()
        self.nbytes = 0
