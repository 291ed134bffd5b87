"""Rows of images that a decoder takes at its layers; they ride on the layers' KV caches.

Some decoders are given more of an image than its embeddings: DeepStack (Qwen3-VL) adds features to
what the first layers make of the image's tokens. Others take no embeddings at all, and are given
the rows at their first layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.base import ImageSpan, Picture
from vision_add_ons.cache_views import CacheView, tokens_in

Rows = Mapping[int, mx.array]
"""Rows [tokens, hidden_size] by the index of their first token in the prompt."""


class FeatureView(CacheView):
    """A layer's cache that brings rows along for it; the layer must be one that `takes_features`.

    `put` stands in for what comes into the layer, `added` is added to what the layer makes of it.
    """

    def __init__(self, cache: Any, seen: int, put: Rows, added: Rows) -> None:
        """`seen` is how many tokens the cache holds: those that keep states do not tell."""
        super().__init__(cache)
        self.put = put
        self.added = added
        self._seen = seen
        self.shift = cache.shift if isinstance(cache, CacheView) else 0

    def like(self, cache: Any) -> "FeatureView":
        return type(self)(cache, self._seen, self.put, self.added)

    @property
    def seen(self) -> int:
        """How many tokens the layer was given. Each layer's own: others' may be a chunk ahead."""
        return int(getattr(self.cache, "offset", self._seen))

    def given(self, count: int) -> None:
        """Note that the layer was given so many more."""
        self._seen += count


@cache
def _taking_features(kind: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, x: mx.array, *args: Any, **named: Any) -> Any:
        views = (a for a in (*args, *named.values()) if isinstance(a, FeatureView))
        view = next(views, None)
        if view is None:
            return kind.__call__(self, x, *args, **named)
        start, count = view.seen, x.shape[1]
        for a, b, rows in _within(view.put, start, count):
            x = mx.concatenate([x[:, :a], rows.astype(x.dtype), x[:, b:]], axis=1)
        x = kind.__call__(self, x, *args, **named)
        view.given(count)
        for a, b, rows in _within(view.added, start, count):
            x = mx.concatenate([x[:, :a], x[:, a:b] + rows.astype(x.dtype), x[:, b:]], axis=1)
        return x

    return type(kind.__name__, (kind,), {"__call__": call})


def _within(rows: Rows, first: int, count: int) -> Iterator[tuple[int, int, mx.array]]:
    """Of `count` tokens from `first` on: where rows [1, n, hidden] begin and end among them."""
    for start, own in rows.items():
        a, b = max(start, first), min(start + len(own), first + count)
        if a < b:
            yield a - first, b - first, own[None, a - start : b - start]


def take_features(layers: Sequence[nn.Module]) -> None:
    """Have these layers of a loaded decoder heed `FeatureView`s, for `prepare_decoder`.

    Each stays the object that it is, with its weights and their names; what it is given with any
    other cache goes through it unchanged. A layer takes its input first, [1, tokens, hidden_size].
    """
    for layer in layers:
        layer.__class__ = _taking_features(type(layer))


def deepstack_views(
    views: Sequence[Any],
    spans: Sequence[ImageSpan],
    encode: Callable[[Picture], mx.array],
    hidden_size: int,
    count: int,
) -> list[Any]:
    """The views of a request whose first `count` layers add features of its images (DeepStack).

    `encode` gives, beside an image's rows, `count` times as many columns: [rows, hidden_size * (1 +
    count)]. Each span is rows alone.
    """
    seen = tokens_in(views)
    encoded = {s.start: encode(s.picture) for s in spans if s.start >= seen}
    if not encoded:
        return list(views)
    result = list(views)
    for i in range(count):
        columns = slice(hidden_size * (i + 1), hidden_size * (i + 2))
        added = {start: rows[:, columns] for start, rows in encoded.items()}
        result[i] = FeatureView(views[i], seen, {}, added)
    return result


def row_views(
    views: Sequence[Any],
    spans: Sequence[ImageSpan],
    encode: Callable[[Picture], mx.array],
) -> list[Any]:
    """The views of a request whose first layer is given the rows, where the decoder takes no
    embeddings. Each span is rows alone."""
    seen = tokens_in(views)
    put = {s.start: encode(s.picture) for s in spans if s.start >= seen}
    if not put:
        return list(views)
    return [FeatureView(views[0], seen, put, {}), *views[1:]]
