"""How many bytes a tower takes of memory for a picture, before anything of it is computed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.graph_bytes import graph_bytes
from vision_add_ons.vit_blocks import Block, Cutting, queries_at_once, writes_scores

SAMPLE = 256
"""Rows by which it is counted what each takes."""


WHOLE, CUT = 1.09, 1.02
"""Kernels need some space of their own, of which no graph tells: on an H200 up to so much more was
measured, of pictures in one piece and in several."""


@dataclass(frozen=True)
class Costs:
    """What one row takes of memory in a tower's blocks, in bytes."""

    row: int
    """The row itself."""
    heads: int
    """All that `Block.heads` makes of it."""
    rest: int
    """All that `Block.rest` makes of it."""
    tables: int
    """Its cosines and sines."""
    head_count: int
    head_dim: int
    dtype: mx.Dtype

    @classmethod
    def of(
        cls,
        layer: nn.Module,
        block: Block,
        width: int,
        heads: int,
        dtype: mx.Dtype,
        turned: mx.Dtype | None = None,
    ) -> "Costs":
        """Of the block of `layer`, by its graph; `turned` is the dtype of its tables, if any.

        To be asked when the tower is loaded, before anybody uses it.
        """
        head_dim = width // heads
        rows = mx.zeros((SAMPLE, width), dtype)
        table = None if turned is None else mx.zeros((SAMPLE, head_dim), turned)
        tables = None if table is None else (table, table)
        return cls(
            row=width * dtype.size,
            heads=per_row(lambda x: block.heads(x, tables), rows, modules=[layer]),
            rest=per_row(block.rest, rows, rows, modules=[layer]),
            tables=0 if turned is None else 2 * head_dim * turned.size,
            head_count=heads,
            head_dim=head_dim,
            dtype=dtype,
        )

    @property
    def block(self) -> int:
        """All of a block, but for scores of attention."""
        # Of what is seen two orders; of values, and of all that is not turned, a copy; and queries
        # that are scaled.
        return self.heads + (3 if self.tables else 6) * self.row + self.rest

    def apart(self, total: int, cutting: Cutting, depth: int, window: int) -> int:
        """As `most`, of one piece of rows that in all blocks see their own window alone."""
        scores = 0
        if writes_scores(self.head_count, window, window, self.head_dim, self.dtype):
            scores = self.head_count * total * window * self.dtype.size
        return self._whole(total, cutting, depth, scores)

    def _whole(self, total: int, cutting: Cutting, depth: int, scores: int) -> int:
        together = depth if total < cutting.lazy else 1
        held = total * (self.row + self.tables)
        return round(WHOLE * (held + together * (total * self.block + scores)))

    def most(self, total: int, cutting: Cutting, depth: int, window: int = 0) -> int:
        """The most bytes that `run_blocks` holds at once of so many rows, beside what it returns.

        `window` is the length of the windows, where there are any.
        """
        piece = min(total, cutting.rows)
        shape = self.head_count, piece, total, self.head_dim, self.dtype
        at_once = queries_at_once(*shape, cutting)
        scores = 0
        if at_once < piece or writes_scores(*shape):
            scores = self.head_count * at_once * total * self.dtype.size
        held = total * (self.row + self.tables)
        if piece == total:
            return self._whole(total, cutting, depth, scores)
        others = 3 * total * self.row
        most = held + max(
            4 * total * self.row,
            others + piece * self.heads,
            others + piece * 4 * self.row + scores,
            others + piece * (self.row + self.rest),
            piece * (self.block + self.head_count * window * self.dtype.size) if window else 0,
        )
        return round(CUT * most)


def per_row(function: Callable[..., Any], *rows: mx.array, modules: Sequence[nn.Module]) -> int:
    """`graph_bytes` of a sample of rows, for one of them."""
    total = rows[0].size // rows[0].shape[-1]
    return -(-graph_bytes(function, *rows, modules=modules) // total)


def conv_bytes(kernel: mx.array, patches: int) -> int:
    """What cutting so many patches and multiplying them by `kernel` takes, beside the pixels.

    Pixels in the kernel's dtype, padded and unfolded, the kernel once more, and the patches: in
    float32, where MLX has no convolution of the dtype itself.
    """
    values = patches * (kernel.size // kernel.shape[0])
    each = 4 + (kernel.dtype.size if kernel.dtype != mx.float32 else 0)
    return values * (4 + each) + kernel.size * each + patches * kernel.shape[0] * each


def most_of(total: int, cutting: Cutting, *phases: int) -> int:
    """The most bytes of phases that follow each other; of few rows they are evaluated at once."""
    return sum(phases) if total < cutting.lazy else max(phases)
