"""The tower of GLM-4V: a transformer over the patches of one picture of any size.

Semantics: transformers' `Glm4vVisionModel`. Ours, because mlx-vlm's takes a picture in one piece.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.qwen3_vl.tower import (
    FOUR,
    MERGE,
    Grid,
    PatchEmbedding,
    merged,
    places,
    rotary_tables,
)
from vision_add_ons.tower_bytes import SAMPLE, Costs, most_of, per_row
from vision_add_ons.vit_blocks import (
    Cutting,
    in_pieces,
    one_by_one,
    qkv_block,
    run_blocks,
    stretches,
)

SHARPNESS = -0.75
"""The constant of the cubic curves by which torch's `grid_sample` interpolates."""


def shares(count: int, side: int) -> np.ndarray:
    """How much each of `count` patches beside each other takes of each of `side` learned positions:
    float32 [count, side].

    The picture's edges lie on those of the square, and its outermost positions go on beyond them.
    """
    middle = (np.arange(count, dtype=np.float32) + 0.5) / np.float32(count) * 2 - 1
    found = ((middle + 1) * side - 1) / 2
    before = np.floor(found)
    after = found - before
    parts = [_far(after + 1), _near(after), _near(1 - after), _far(2 - after)]
    taps = before.astype(int)[:, None] + np.arange(-1, 3)
    result = np.zeros((count, side), np.float32)
    where = np.arange(count)[:, None], taps.clip(0, side - 1)
    np.add.at(result, where, np.stack(parts, axis=1))
    return result


def _near(x: np.ndarray) -> np.ndarray:
    """The cubic curve up to one position away."""
    a = SHARPNESS
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _far(x: np.ndarray) -> np.ndarray:
    """The same from one to two positions away."""
    a = SHARPNESS
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=False)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["rms_norm_eps"]
        self.norm1 = nn.RMSNorm(width, eps)
        self.norm2 = nn.RMSNorm(width, eps)
        self.attn = Attention(width, config["num_heads"], config["attention_bias"])
        self.mlp = FeedForward(width, config["out_hidden_size"])


class Merger(FeedForward):
    """From rows to rows, as wide as the decoder's."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(width, inner)
        self.proj = nn.Linear(width, width, bias=False)
        self.post_projection_norm = nn.LayerNorm(width)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(nn.gelu(self.post_projection_norm(self.proj(x))))


class Embeddings(nn.Module):
    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(positions, width)


class Glm4vTower(nn.Module):
    """The tower that a complete, checked `vision_config` describes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, out, patch = config["hidden_size"], config["out_hidden_size"], config["patch_size"]
        eps = config["rms_norm_eps"]
        self.side = config["image_size"] // patch
        self.head_dim = width // config["num_heads"]
        self.patch_embed = PatchEmbedding(config["temporal_patch_size"], patch, width)
        self.post_conv_layernorm = nn.RMSNorm(width, eps)
        self.embeddings = Embeddings(self.side**2, width)
        self.blocks = [Layer(config) for _ in range(config["depth"])]
        self.post_layernorm = nn.RMSNorm(width, eps)
        self.downsample = nn.Conv2d(width, out, MERGE, MERGE)
        self.merger = Merger(out, config["intermediate_size"])

    def __call__(
        self,
        patches: np.ndarray,
        values: Callable[[np.ndarray], mx.array],
        grid: Grid,
        cutting: Cutting,
    ) -> mx.array:
        """The rows of one picture: [patches / 4, out_hidden_size].

        `patches` [patches, ...] stand in the fours that become a row; `values` makes of some of
        them what `PatchEmbedding` reads.
        """
        lengths = cutting.pieces([FOUR] * (len(patches) // FOUR))
        where = places(grid)
        turns = [in_pieces(turn, lengths) for turn in rotary_tables(where, self.head_dim)]
        tables = list(zip(*turns, strict=True))
        learned = self.embeddings.position_embedding(mx.arange(self.side**2)).astype(mx.float32)
        down, across = (shares(count, self.side) for count in grid)

        def embedded(part: slice) -> mx.array:
            rows = self.post_conv_layernorm(self.patch_embed(values(patches[part])))
            lines, columns = down[where[part, 0]], across[where[part, 1]]
            share = mx.array((lines[:, :, None] * columns[:, None]).reshape(len(lines), -1))
            return rows + (share @ learned).astype(rows.dtype)

        rows = one_by_one(stretches(lengths), embedded, several=len(lengths) > 1)
        blocks = [qkv_block(layer, layer.attn.heads) for layer in self.blocks]
        run_blocks(rows, blocks, cutting, tables)
        return merged(rows, self.merge)

    def merge(self, x: mx.array) -> mx.array:
        """Rows [patches, width] to [patches / 4, out].

        A product, which is what a convolution is whose windows lie side by side.
        """
        x = self.post_layernorm(x).reshape(-1, FOUR * x.shape[-1])
        return self.merger(mx.addmm(self.downsample.bias, x, self.downsample.weight.flatten(1).T))

    def costs(self) -> tuple[Costs, int]:
        """What a patch takes in the blocks, and where fours become rows; see `most_bytes`."""
        layer, kernel = self.blocks[0], self.patch_embed.proj.weight
        width = kernel.shape[0]
        sample = mx.zeros((SAMPLE, width), kernel.dtype)
        parts = [self.post_layernorm, self.downsample, self.merger]
        row = per_row(self.merge, sample, modules=parts)
        heads = layer.attn.heads
        block = qkv_block(layer, heads)
        return Costs.of(layer, block, width, heads, kernel.dtype, mx.float32), row

    def most_bytes(self, grid: Grid, cutting: Cutting, costs: tuple[Costs, int]) -> int:
        """The most bytes beside the weights that one picture takes here."""
        row, merging = costs
        kernel, learned = self.patch_embed.proj.weight, self.side**2
        total, values, width = math.prod(grid), kernel.size // kernel.shape[0], kernel.shape[0]
        piece = min(total, cutting.rows)
        made = total // FOUR * self.downsample.weight.shape[0] * row.dtype.size
        return most_of(
            total,
            cutting,
            # The values in float32, for each frame, and once more in order; shares of positions.
            piece * (values * (12 + row.dtype.size) + 4 * learned + 4 * row.row + 4 * width)
            + learned * width * (4 + row.dtype.size)
            + total * (row.row + 4 * row.tables),
            row.most(total, cutting, len(self.blocks)),
            total * (row.row + row.tables) + made + piece * merging,
            2 * made + total * row.tables,
        )
