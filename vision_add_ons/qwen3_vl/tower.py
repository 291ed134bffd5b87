"""The tower of Qwen3-VL: a transformer over the patches of one picture of any size.

Semantics: transformers' `Qwen3VLVisionModel`. Ours, because mlx-vlm's takes a picture in one piece.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.tower_bytes import SAMPLE, Costs, most_of, per_row
from vision_add_ons.vit_blocks import (
    Cutting,
    Tables,
    in_pieces,
    one_by_one,
    qkv_block,
    run_blocks,
    stretches,
)

MERGE, FOUR = 2, 4
"""Patches that become one row: beside each other, and in all."""
EPS = 1e-6  # of every norm; no config has a field for it
THETA = 10000.0

Grid = tuple[int, int]
"""How many patches stand below and beside each other."""


def places(grid: Grid) -> np.ndarray:
    """The row and the column of each patch: int32 [patches, 2]. Those that become one row of
    embeddings follow each other."""
    rows, columns = grid
    cut = np.indices(grid, np.int32).reshape(2, rows // MERGE, MERGE, columns // MERGE, MERGE)
    return cut.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def rotary_tables(where: np.ndarray, head_dim: int) -> Tables:
    """Cosines and sines that turn each head of each patch, both float32 [patches, head_dim].

    The first half of the frequencies goes with the patch's row, the second with its column.
    """
    frequencies = THETA ** -(mx.arange(0, head_dim // 2, 2, dtype=mx.float32) / (head_dim // 2))
    angles = (mx.array(where)[..., None] * frequencies).flatten(1)
    return mx.tile(mx.cos(angles), (1, 2)), mx.tile(mx.sin(angles), (1, 2))


def neighbours(where: np.ndarray, grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Which four of the `side` x `side` learned positions each patch lies between, and how much it
    takes of each: int32 and float32, [patches, 4].

    The corners of the picture lie on those of the square.
    """
    last = np.maximum(np.array(grid, np.float32) - 1, 1)
    found = where.astype(np.float32) * np.float32(side - 1) / last
    before = np.floor(found)
    after = found - before
    low = before.astype(np.int32)
    taps = np.stack([low, np.minimum(low + 1, side - 1)])  # [2, patches, 2]
    parts = np.stack([1 - after, after])
    index = taps[:, None, :, 0] * side + taps[None, :, :, 1]
    share = parts[:, None, :, 0] * parts[None, :, :, 1]
    return index.reshape(4, -1).T, share.reshape(4, -1).T


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(width, inner)
        self.linear_fc2 = nn.Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_fc2(nn.gelu_approx(self.linear_fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width, inner)


class Merger(nn.Module):
    """Four patches become one row; the norm is of each, or of the four `together`."""

    def __init__(self, width: int, out: int, together: bool) -> None:
        super().__init__()
        self.together = together
        self.norm = nn.LayerNorm(FOUR * width if together else width, EPS)
        self.linear_fc1 = nn.Linear(FOUR * width, FOUR * width)
        self.linear_fc2 = nn.Linear(FOUR * width, out)

    def __call__(self, x: mx.array) -> mx.array:
        """Rows [patches, width] to [patches / 4, out]."""
        shape = -1, FOUR * x.shape[-1]
        x = self.norm(x.reshape(shape)) if self.together else self.norm(x).reshape(shape)
        return self.linear_fc2(nn.gelu(self.linear_fc1(x)))


class PatchEmbedding(nn.Module):
    def __init__(self, frames: int, side: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (frames, side, side), (frames, side, side))

    def __call__(self, values: mx.array) -> mx.array:
        """Patches [n, values], in the order channel, frame, height, width, to [n, width].

        A product, which is what a convolution is whose windows lie side by side.
        """
        kernel = self.proj.weight
        shape = kernel.shape[-1], *kernel.shape[1:-1]
        x = mx.unflatten(values, 1, shape).moveaxis(1, -1).flatten(1).astype(kernel.dtype)
        return mx.addmm(self.proj.bias, x, kernel.flatten(1).T)


class Qwen3VLTower(nn.Module):
    """The tower that a complete, checked `vision_config` describes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, out = config["hidden_size"], config["out_hidden_size"]
        heads, inner = config["num_heads"], config["intermediate_size"]
        self.side = math.isqrt(config["num_position_embeddings"])
        self.deep = tuple(config.get("deepstack_visual_indexes") or ())
        self.out = out
        self.patch_embed = PatchEmbedding(
            config["temporal_patch_size"], config["patch_size"], width
        )
        self.pos_embed = nn.Embedding(config["num_position_embeddings"], width)
        self.blocks = [Layer(width, heads, inner) for _ in range(config["depth"])]
        self.merger = Merger(width, out, together=False)
        self.deepstack_merger_list = [Merger(width, out, together=True) for _ in self.deep]

    @property
    def head_dim(self) -> int:
        return self.patch_embed.proj.weight.shape[0] // self.blocks[0].attn.heads

    def __call__(
        self,
        patches: np.ndarray,
        values: Callable[[np.ndarray], mx.array],
        grid: Grid,
        cutting: Cutting,
    ) -> mx.array:
        """One picture: its rows, and beside them what is added to them after the decoder's first
        layers, [patches / 4, out_hidden_size * (1 + DeepStack's layers)].

        `patches` [patches, ...] stand in the fours that become a row; `values` makes of some of
        them what `PatchEmbedding` reads.
        """
        lengths = cutting.pieces([FOUR] * (len(patches) // FOUR))
        where = places(grid)
        turns = [in_pieces(turn, lengths) for turn in rotary_tables(where, self.head_dim)]
        tables = list(zip(*turns, strict=True))
        index, share = neighbours(where, grid, self.side)

        def embedded(part: slice) -> mx.array:
            rows = self.patch_embed(values(patches[part]))
            learned = self.pos_embed(mx.array(index[part])) * mx.array(share[part])[..., None]
            return rows + learned.sum(1).astype(rows.dtype)

        rows = one_by_one(stretches(lengths), embedded, several=len(lengths) > 1)
        blocks = [qkv_block(layer, layer.attn.heads) for layer in self.blocks]
        made: list[mx.array] = []
        done = 0
        for end, merger in zip(self.deep, self.deepstack_merger_list, strict=True):
            run_blocks(rows, blocks[done : end + 1], cutting, tables)
            made.append(merged(rows, merger))
            done = end + 1
        run_blocks(rows, blocks[done:], cutting, tables)
        made.insert(0, merged(rows, self.merger))
        return mx.concatenate(made, axis=1) if self.deep else made[0]

    def costs(self) -> tuple[Costs, int]:
        """What a patch takes in the blocks, and in a merger; see `most_bytes`."""
        layer, kernel = self.blocks[0], self.patch_embed.proj.weight
        width, heads = kernel.shape[0], layer.attn.heads
        mergers = [self.merger, *self.deepstack_merger_list[:1]]
        sample = mx.zeros((SAMPLE, width), kernel.dtype)
        merged = max(per_row(merger, sample, modules=[merger]) for merger in mergers)
        layers = qkv_block(layer, heads)
        block = Costs.of(layer, layers, width, heads, kernel.dtype, mx.float32)
        return block, merged

    def most_bytes(self, grid: Grid, cutting: Cutting, costs: tuple[Costs, int]) -> int:
        """The most bytes beside the weights that one picture takes here."""
        row, merged = costs
        kernel = self.patch_embed.proj.weight
        total, values, width = math.prod(grid), kernel.size // kernel.shape[0], kernel.shape[0]
        piece, mergers = min(total, cutting.rows), 1 + len(self.deep)
        made = total // FOUR * self.out * row.dtype.size
        held = total * (row.row + row.tables)
        return most_of(
            total,
            cutting,
            # The values in float32, for each frame, and once more in order; four positions.
            piece * (values * (12 + row.dtype.size) + width * 4 * (row.dtype.size + 4))
            + total * (row.row + 4 * row.tables),
            (mergers - 1) * made + row.most(total, cutting, len(self.blocks)),
            *[(mergers - 1) * made + held + made + piece * merged] * mergers,
            2 * mergers * made + total * row.tables,
        )


def merged(rows: Sequence[mx.array], merger: Callable[[mx.array], mx.array]) -> mx.array:
    """What `merger` makes of all pieces."""
    parts = one_by_one(rows, merger, several=len(rows) > 1)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)
