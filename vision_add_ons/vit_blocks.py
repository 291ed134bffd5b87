"""Blocks of a vision transformer over the rows of one picture, in memory that grows with the rows.

A long picture is cut into pieces of rows. Keys and values are made of all, and then each piece
goes through a block by itself: attention in blocks of queries, what is behind it, and the new piece
takes the place of the old one. A short picture is a single piece, and computed as anybody would.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

Tables = tuple[mx.array, mx.array]
"""Cosines and sines for each row, both [rows, head_dim]."""
Heads = tuple[mx.array, mx.array, mx.array]
"""Queries, keys and values, each [heads, rows, head_dim]."""
T = TypeVar("T")


@dataclass(frozen=True)
class Cutting:
    """What is computed at once."""

    rows: int = 2048
    """Rows of a piece, at most."""
    scores: int = 2**29
    """Bytes of attention scores, at most, where they are written out."""
    lazy: int = 512
    """Rows of a picture from which on each block is computed before the next. At each such pause a
    GPU waits for the next block to be prepared, which small pictures would feel."""

    def pieces(self, stretches: Iterable[int]) -> list[int]:
        """The lengths of the pieces of all rows, cut between `stretches` of so many rows alone."""
        pieces = [0]
        for stretch in stretches:
            if pieces[-1] and pieces[-1] + stretch > self.rows:
                pieces.append(0)
            pieces[-1] += stretch
        return pieces


@dataclass(frozen=True)
class Block:
    """One block, in the two halves that attention divides it into."""

    heads: Callable[[mx.array, Tables | None], Heads]
    """What attention takes, of rows [rows, width]."""
    rest: Callable[[mx.array, mx.array], mx.array]
    """The rows behind the block, of those before it and of what attention saw, [rows, width]."""
    windowed: bool = False
    """Rows see only those of their own window."""
    scale: float | None = None
    """What attention multiplies its scores by; None for head_dim^-0.5."""


def by_heads(x: mx.array, heads: int, *projections: nn.Module) -> list[mx.array]:
    """Rows [rows, width] by each projection, [heads, rows, head_dim]."""
    return [mx.unflatten(project(x), -1, (heads, -1)).swapaxes(0, 1) for project in projections]


def qkv_block(layer: nn.Module, heads: int, windowed: bool = False) -> Block:
    """A layer of Qwen's towers and those like them, by the names that its parts have in the
    weights: one projection makes queries, keys and values, and tables turn the first two."""

    def split(x: mx.array, tables: Tables | None) -> Heads:
        assert tables is not None
        made = layer.attn.qkv(layer.norm1(x))
        queries, keys, values = mx.unflatten(made, -1, (3, heads, -1)).transpose(1, 2, 0, 3)
        # Tables are float32, whatever the rows are in.
        queries, keys = (rotate(part, tables).astype(made.dtype) for part in (queries, keys))
        return queries, keys, values

    def rest(x: mx.array, seen: mx.array) -> mx.array:
        x = x + layer.attn.proj(seen)
        return x + layer.mlp(layer.norm2(x))

    return Block(split, rest, windowed)


def run_blocks(
    rows: list[mx.array],
    blocks: Iterable[Block],
    cutting: Cutting,
    tables: Sequence[Tables] | None = None,
    windows: Sequence[int] = (),
) -> None:
    """Send all of `rows`, pieces [rows, width] of one picture, through `blocks`, in place.

    `tables` belong to the pieces; `windows` are the lengths of all windows, none of which two
    pieces share.
    """
    lengths = [len(piece) for piece in rows]
    total = sum(lengths)
    inside = _of_pieces(windows, lengths)
    pausing = total >= cutting.lazy
    settle(*rows, *(array for pair in tables or () for array in pair), when=pausing)
    turns: Sequence[Tables | None] = tables if tables is not None else [None] * len(rows)
    for block in blocks:
        if block.windowed:
            for i, turn in enumerate(turns):
                rows[i] = block.rest(
                    rows[i],
                    _through_windows(*block.heads(rows[i], turn), inside[i], block.scale),
                )
                settle(rows[i], when=len(rows) > 1)
        elif len(rows) == 1:
            rows[0] = block.rest(
                rows[0], attend(*block.heads(rows[0], turns[0]), cutting, block.scale)
            )
        else:
            _through_pieces(rows, block, turns, cutting)
        settle(*rows, when=pausing)


def in_pieces(rows: mx.array, lengths: Sequence[int]) -> list[mx.array]:
    """Arrays of their own, of so many rows each."""
    if len(lengths) == 1:
        return [rows]
    pieces = [mx.contiguous(rows[stretch]) for stretch in stretches(lengths)]
    settle(*pieces)
    return pieces


def _through_pieces(
    rows: list[mx.array], block: Block, turns: Sequence[Tables | None], cutting: Cutting
) -> None:
    queries: list[mx.array] = []
    keys: list[mx.array] = []
    values: list[mx.array] = []
    for piece, turn in zip(rows, turns, strict=True):
        # Arrays of their own: a view would hold what it is a view of.
        made = [mx.contiguous(part) for part in block.heads(piece, turn)]
        settle(*made)
        for parts, part in zip((queries, keys, values), made, strict=True):
            parts.append(part)
        del made, part, piece
    all_keys, all_values = _whole(keys), _whole(values)
    for i in range(len(rows)):
        seen = attend(queries.pop(0), all_keys, all_values, cutting, block.scale)
        settle(seen)
        rows[i] = block.rest(rows[i], seen)
        del seen
        settle(rows[i])


def _whole(parts: list[mx.array]) -> mx.array:
    whole = mx.concatenate(parts, axis=1)
    settle(whole)
    parts.clear()
    return whole


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cutting: Cutting,
    scale: float | None = None,
) -> mx.array:
    """What each of the queries sees of all values: [rows, heads * head_dim]; see `Block.scale`."""
    heads, count, head_dim = queries.shape
    scale = head_dim**-0.5 if scale is None else scale
    at_once = queries_at_once(heads, count, keys.shape[1], head_dim, queries.dtype, cutting)
    if at_once >= count:
        return _joined(_attention(queries, keys, values, scale))
    keys, values = mx.contiguous(keys), mx.contiguous(values)
    seen = []
    for start in range(0, count, at_once):
        part = queries[:, start : start + at_once]
        seen.append(_joined(_attention(part, keys, values, scale)))
        settle(seen[-1])
    return mx.concatenate(seen)


def _attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    batch = queries[None], keys[None], values[None]
    return mx.fast.scaled_dot_product_attention(*batch, scale=scale).squeeze(0)


def _joined(seen: mx.array) -> mx.array:
    return seen.swapaxes(0, 1).flatten(1)


def _through_windows(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    windows: Sequence[int],
    scale: float | None,
) -> mx.array:
    """As `attend`, for rows that see their own window; neighbours of one length are a batch."""
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    seen = []
    start = 0
    for length, count in _runs(windows):
        end = start + length * count
        batch = (
            mx.unflatten(part[:, start:end], 1, (count, length)).swapaxes(0, 1)
            for part in (queries, keys, values)
        )
        out = mx.fast.scaled_dot_product_attention(*batch, scale=scale)
        seen.append(out.swapaxes(1, 2).reshape(length * count, -1))
        start = end
    return mx.concatenate(seen)


def _of_pieces(windows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """The windows of each piece."""
    rest = iter(windows)
    inside: list[list[int]] = []
    for left in lengths if windows else ():
        inside.append([])
        while left > 0:
            inside[-1].append(next(rest))
            left -= inside[-1][-1]
    return inside


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Each length, and how often it follows itself."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        count = runs.pop()[1] if runs and runs[-1][0] == length else 0
        runs.append((length, count + 1))
    return runs


def one_by_one(parts: Iterable[T], make: Callable[[T], mx.array], several: bool) -> list[mx.array]:
    """What `make` makes of each part; of several, each is computed before the next is made."""
    made = []
    for part in parts:
        made.append(make(part))
        del part
        settle(made[-1], when=several)
    return made


def stretches(lengths: Sequence[int]) -> list[slice]:
    """Where pieces of these lengths lie in all of it."""
    return [slice(end - n, end) for n, end in zip(lengths, accumulate(lengths), strict=True)]


def settle(*arrays: mx.array, when: bool = True) -> None:
    """Have them computed, and what they were made of let go."""
    if when:
        mx.eval(*arrays)
        mx.synchronize()


def rotate(x: mx.array, tables: Tables) -> mx.array:
    """Turn the two halves of the last axis against each other."""
    cos, sin = tables
    first, second = mx.split(x, 2, axis=-1)
    return x * cos + mx.concatenate([-second, first], axis=-1) * sin


def queries_at_once(
    heads: int, queries: int, keys: int, head_dim: int, dtype: mx.Dtype, cutting: Cutting
) -> int:
    """How many queries attention takes at once: all where MLX does not write the scores out."""
    fit = cutting.scores // (heads * keys * dtype.size)
    if fit >= queries or not writes_scores(heads, queries, keys, head_dim, dtype):
        return queries
    return max(1, fit)


def writes_scores(heads: int, queries: int, keys: int, head_dim: int, dtype: mx.Dtype) -> bool:
    """Whether MLX's attention has no kernel of its own here: its graph shows, uncomputed."""
    q = mx.zeros((1, heads, queries, head_dim), dtype)
    kv = mx.zeros((1, heads, keys, head_dim), dtype)
    graph = io.StringIO()
    mx.export_to_dot(graph, mx.fast.scaled_dot_product_attention(q, kv, kv, scale=1.0))
    return "Softmax" in graph.getvalue()
