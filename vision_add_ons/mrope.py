"""Positions on three axes (M-RoPE) for a decoder of mlx-lm's that counts on one.

Semantics: `get_rope_index` and the rotary embedding of transformers' Qwen2-VL. Each frequency of
the rotary embedding follows one of the axes time, height and width. Text counts on all three at
once. The rows of a picture share one time and count by their row and column in its grid, and what
follows the picture goes on behind the longer side of that grid.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.cache_views import CacheView

Grid = tuple[int, int, int]
"""A picture in a prompt: index of its first placeholder, rows, columns."""
Tables = tuple[mx.array, mx.array]
"""Cosines and sines, float32 [tokens, head_dim / 2] each."""


class AxisPositions:
    """Where the tokens of one prompt, and those generated after it, stand on the three axes."""

    def __init__(self, ids: np.ndarray, delta: int) -> None:
        self.ids = ids
        """The position of each token of the prompt on each axis: int32 [3, length]."""
        self.delta = delta
        """What to add to a later token's index for its position."""
        self._chunk = (0, 0)
        self._placed: int | Tables = 0

    def axes(self, start: int, count: int) -> np.ndarray:
        """The positions of `count` tokens from index `start` on: int32 [3, count]."""
        inside = self.ids[:, start : start + count]
        after = np.arange(start + inside.shape[1], start + count, dtype=np.int32) + self.delta
        return np.concatenate([inside, np.tile(after, (3, 1))], axis=1)

    def place(self, start: int, count: int, tables: Callable[[np.ndarray], Tables]) -> int | Tables:
        """How to turn `count` tokens from index `start` on.

        The offset at which plain rope does it, where they count on all axes at once; else what
        `tables` makes of their positions. Every layer asks for the same tokens twice before the
        next ones come, so the last answer is kept.
        """
        if start >= self.ids.shape[1]:
            return start + self.delta
        if self._chunk != (start, count):
            ids = self.axes(start, count)
            first = int(ids[0, 0])
            counting = (ids == np.arange(first, first + count)).all()
            self._chunk, self._placed = (start, count), first if counting else tables(ids)
        return self._placed


class PromptPositions(AxisPositions):
    """Those of a prompt whose pictures are rows in a grid, and nothing beside them."""

    def __init__(self, length: int, grids: Sequence[Grid]) -> None:
        """For a prompt of `length` tokens with pictures in ascending order, row after row each."""
        ids = np.empty((3, length), np.int32)
        index = position = 0
        for start, rows, columns in grids:
            ids[:, index:start] = np.arange(position, position + start - index)
            position += start - index
            index = start + rows * columns
            ids[:, start:index] = np.indices((1, rows, columns)).reshape(3, -1) + position
            position += max(rows, columns)
        ids[:, index:] = np.arange(position, position + length - index)
        super().__init__(ids, position - index)


class Positions(int):
    """A cache's offset that knows where its prompt's tokens stand; else the number it is."""

    prompt: AxisPositions
    """The positions of the whole prompt."""

    def __new__(cls, offset: int, prompt: AxisPositions) -> "Positions":
        self = super().__new__(cls, offset)
        self.prompt = prompt
        return self


class PositionView(CacheView):
    """A cache whose `offset` brings the positions of its request's `prompt` along."""

    def __init__(self, cache: Any, prompt: AxisPositions) -> None:
        super().__init__(cache)
        self.prompt = prompt
        self.shift = prompt.delta

    def like(self, cache: Any) -> "PositionView":
        return type(self)(cache, self.prompt)

    @property
    def offset(self) -> Positions:
        return Positions(self.cache.offset, self.prompt)


def in_runs(sections: Sequence[int]) -> list[int]:
    """The axis of each frequency, the fastest first: runs of time, height and width (Qwen2-VL)."""
    return [axis for axis, count in enumerate(sections) for _ in range(count)]


def interleaved(sections: Sequence[int]) -> list[int]:
    """The same, height and width at every third frequency, and time at the others (Qwen3-VL)."""
    axes = [0] * sum(sections)
    for axis in (1, 2):
        for place in range(axis, min(3 * sections[axis], len(axes)), 3):
            axes[place] = axis
    return axes


class MRope(nn.Module):
    """A layer's rope that also turns by `Positions`; any other offset goes to `rope` itself.

    `axes` say which axis each frequency follows, the fastest first: 0 for time, 1 for height, 2 for
    width. Where there are fewer than half a head's channels, the first ones alone are turned, as
    `rope` does it. `traditional` ropes turn neighbours, others the two halves. All layers of a
    decoder must wrap equal ropes.
    """

    def __init__(self, rope: nn.Module, axes: Sequence[int], traditional: bool = False) -> None:
        super().__init__()
        self.rope = rope
        self._axes = np.asarray(axes)
        self._traditional = traditional

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Turn queries or keys [batch, heads, tokens, head_dim]."""
        if isinstance(offset, Positions):
            offset = offset.prompt.place(offset, x.shape[-2], self._tables)
            if isinstance(offset, tuple):
                cos, sin = offset
                return rotate(x, cos, sin, self._traditional)
        return self.rope(x, offset=offset)

    def _tables(self, ids: np.ndarray) -> Tables:
        """Read the wrapped rope's cosines and sines at these positions off vectors that it turns.

        So its frequencies and factors, whatever its type, are those that text has.
        """
        one, zero = mx.ones(len(self._axes)), mx.zeros(len(self._axes))
        vector = _joined(one, zero, self._traditional)
        # Laid out in memory: MLX's rope on CUDA misreads an array that only repeats itself.
        vectors = mx.contiguous(mx.broadcast_to(vector, (ids.shape[1], 1, 1, vector.size)))
        cos, sin = mx.zeros(0), mx.zeros(0)
        for axis in range(int(self._axes.max()) + 1):
            turned = self.rope(vectors, offset=mx.array(ids[axis]))  # a token a batch element
            own = _split(turned.reshape(-1, vector.size), self._traditional)
            follows = mx.array(self._axes == axis)
            cos, sin = (
                own
                if not axis
                else (
                    mx.where(follows, own[0], cos),
                    mx.where(follows, own[1], sin),
                )
            )
        return cos, sin


def rotate(x: mx.array, cos: mx.array, sin: mx.array, traditional: bool = False) -> mx.array:
    """Turn pairs of the last axis of `x`, in the tables' precision: (i, i + half), or neighbours.

    The tables have shape [..., half] and are broadcast to `x`; what lies behind the first 2 * half
    channels stays. The result has the dtype of `x`.
    """
    dims = 2 * cos.shape[-1]
    a, b = _split(x[..., :dims], traditional)
    turned = _joined(a * cos - b * sin, b * cos + a * sin, traditional).astype(x.dtype)
    return turned if dims == x.shape[-1] else mx.concatenate([turned, x[..., dims:]], axis=-1)


def _split(x: mx.array, traditional: bool) -> tuple[mx.array, mx.array]:
    """The first and the second of each pair along the last axis."""
    if traditional:
        return x[..., ::2], x[..., 1::2]
    a, b = mx.split(x, 2, axis=-1)
    return a, b


def _joined(a: mx.array, b: mx.array, traditional: bool) -> mx.array:
    """`_split`, undone."""
    return mx.stack([a, b], axis=-1).flatten(-2) if traditional else mx.concatenate([a, b], axis=-1)
