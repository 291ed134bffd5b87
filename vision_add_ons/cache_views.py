"""What a prompt's pictures need rides on its KV caches.

mlx-lm's models ask each layer's cache for their attention mask and for their position. A view
answers for the cache it looks at where a prompt with pictures differs from plain text, and leaves
everything else to it. Views live as long as one request; what is stored is the plain cache.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

Range = tuple[int, int]
"""Token indices from the first up to, and without, the second; counted from the prompt's start."""


class CacheView:
    """Stands for one layer's mlx-lm `cache` and hands everything on to it."""

    shift: int = 0
    """What the tokens behind the prompt stand behind their index: to be added for their position.

    All that answers which are decoded together need of a view: their caches are plain, and `offset`
    is the cache's own and this.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["cache"], name)
        # mlx-lm's loop puts the result in place of what it quantizes: it must stay a view.
        return self._quantized if name == "to_quantized" else value

    @property
    def state(self) -> Any:
        """The arrays of the cache."""
        return self.cache.state

    def __getitem__(self, index: int) -> Any:
        """One of the arrays of a cache that keeps states, as of convolutions."""
        return self.cache[index]

    def __setitem__(self, index: int, array: mx.array) -> None:
        self.cache[index] = array

    def like(self, cache: Any) -> "CacheView":
        """The same view of another cache."""
        return type(self)(cache)

    def _quantized(self, **options: int) -> "CacheView":
        return self.like(self.cache.to_quantized(**options))


def plain_caches(caches: Sequence[Any]) -> list[Any]:
    """The caches behind their views, and behind views of views."""
    return [_plain(cache) for cache in caches]


def _plain(cache: Any) -> Any:
    while isinstance(cache, CacheView):
        cache = cache.cache
    return cache


def tokens_in(caches: Sequence[Any]) -> int:
    """How many tokens a request's caches hold; of those that keep states, the others tell."""
    return int(next((c.offset for c in plain_caches(caches) if hasattr(c, "offset")), 0))


def shift_of(caches: Sequence[Any]) -> int:
    """The `CacheView.shift` of a prompt's caches."""
    return max((c.shift for c in caches if isinstance(c, CacheView)), default=0, key=abs)


class BidirectionalView(CacheView):
    """A cache whose mask lets the tokens of each of `ranges` see each other whole.

    The mask is (causal or same range) and within the window, for caches that rotate and for those
    that do not, as transformers composes it for Gemma 3; or `beyond_window`, within the window and
    causal, or same range. A range must be run in one piece.
    """

    def __init__(self, cache: Any, ranges: Sequence[Range], *, beyond_window: bool = False) -> None:
        super().__init__(cache)
        self.ranges = ranges
        self.beyond_window = beyond_window

    def like(self, cache: Any) -> "BidirectionalView":
        return type(self)(cache, self.ranges, beyond_window=self.beyond_window)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask of the next `N` tokens: bool [N, keys], or mlx-lm's own if no range is met."""
        start = self.cache.offset
        met = [(a, b) for a, b in self.ranges if a < start + N and b > start and b - a > 1]
        if N == 1 or not met:
            return self.cache.make_mask(N, return_array=return_array, window_size=window_size)
        causal = self.cache.make_mask(N, return_array=True, window_size=window_size)
        rows = mx.arange(start, start + N)[:, None]
        # A cache that rotates has dropped the oldest keys.
        columns = mx.arange(start + N - causal.shape[-1], start + N)[None]
        same = mx.zeros(causal.shape, dtype=mx.bool_)
        for a, b in met:
            same = same | ((rows >= a) & (rows < b) & (columns >= a) & (columns < b))
        window = window_size or getattr(self.cache, "max_size", None)
        if window is not None and not self.beyond_window:
            same = same & (rows < columns + window)
        return causal | same
