"""LFM2-VL's tower, SigLIP 2 for views of any shape, and the projector behind it.

Semantics: transformers' `Siglip2VisionModel` and `Lfm2VlMultiModalProjector`. Ours, because
importing mlx-vlm's `lfm2_vl` replaces methods of transformers' processor.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.configs import check_fields
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.siglip import siglip_block
from vision_add_ons.siglip_layers import SiglipEncoder, check_layers
from vision_add_ons.tower_bytes import SAMPLE, Costs, most_of, per_row
from vision_add_ons.vit_blocks import Cutting, in_pieces, run_blocks


class Embeddings(nn.Module):
    """Patches become rows, and learned positions are stretched over them."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width = vision["hidden_size"]
        self.side = math.isqrt(vision["num_patches"])
        self.inputs = 3 * vision["patch_size"] ** 2
        self.patch_embedding = nn.Linear(self.inputs, width)
        self.position_embedding = nn.Embedding(vision["num_patches"], width)

    def __call__(self, values: mx.array) -> mx.array:
        """From [lines, columns, values of a patch] to [lines * columns, width]."""
        lines, columns, _ = values.shape
        embedded = self.patch_embedding(values)
        learned = self.position_embedding(mx.arange(self.side**2)).astype(mx.float32)
        down = stretched(self.side, lines) @ learned.reshape(self.side, -1)
        across = stretched(self.side, columns) @ mx.unflatten(down, 1, (self.side, -1))
        return (embedded + across.astype(embedded.dtype)).flatten(0, 1)


class Siglip2Tower(nn.Module):
    """The tower that a complete `vision_config` describes.

    Raises `UnsupportedCheckpoint` or `BrokenConfig` naming the field.
    """

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        _check(vision)
        self.embeddings = Embeddings(vision)
        self.encoder = SiglipEncoder(vision)
        self.post_layernorm = nn.LayerNorm(vision["hidden_size"], vision["layer_norm_eps"])

    def __call__(self, values: mx.array, cutting: Cutting) -> mx.array:
        """Features of one view's patches where they lie: [lines, columns, width]."""
        lines, columns, _ = values.shape
        values = values.astype(self.post_layernorm.weight.dtype)
        rows = in_pieces(self.embeddings(values), cutting.pieces([1] * (lines * columns)))
        run_blocks(rows, [siglip_block(layer) for layer in self.encoder.layers], cutting)
        whole = mx.concatenate(rows)
        rows.clear()
        return mx.unflatten(self.post_layernorm(whole), 0, (lines, columns))


class Projector(nn.Module):
    """One row for each square of `factor` x `factor` patches, as wide as the decoder's."""

    def __init__(self, whole: dict[str, Any]) -> None:
        super().__init__()
        self.factor = whole["downsample_factor"]
        inputs = whole["vision_config"]["hidden_size"] * self.factor**2
        inner, width = whole["projector_hidden_size"], whole["text_config"]["hidden_size"]
        self.layer_norm = nn.LayerNorm(inputs) if whole["projector_use_layernorm"] else None
        self.linear_1 = nn.Linear(inputs, inner, bias=whole["projector_bias"])
        self.linear_2 = nn.Linear(inner, width, bias=whole["projector_bias"])

    def __call__(self, x: mx.array) -> mx.array:
        """From [lines, columns, inputs] to [rows, width]."""
        lines, columns, width = x.shape
        cut = x.reshape(lines // self.factor, self.factor, columns // self.factor, -1, width)
        squares = cut.swapaxes(1, 2).flatten(2).flatten(0, 1)
        if self.layer_norm is not None:
            squares = self.layer_norm(squares)
        return self.linear_2(nn.gelu(self.linear_1(squares)))


def stretched(before: int, after: int) -> mx.array:
    """By which weights `before` values become `after`, linearly and smoothed: [after, before]."""
    scale = before / after
    centers = (mx.arange(after, dtype=mx.float32) + 0.5) * scale - 0.5
    off = mx.abs(mx.arange(before, dtype=mx.float32) - centers[:, None])
    weights = mx.maximum(1 - off / max(scale, 1.0), 0)
    return weights / weights.sum(-1, keepdims=True)


def tower_costs(tower: Siglip2Tower, projector: Projector) -> tuple[Costs, int]:
    """What a patch takes in the tower's blocks, and behind them; see `most_bytes`."""
    layer, dtype = tower.encoder.layers[0], tower.post_layernorm.weight.dtype
    width, heads = tower.post_layernorm.weight.shape[0], layer.self_attn.num_heads
    side = math.ceil(math.sqrt(SAMPLE) / projector.factor) * projector.factor
    behind = per_row(
        lambda x: projector(tower.post_layernorm(x)),
        mx.zeros((side, side, width), dtype),
        modules=[tower.post_layernorm, projector],
    )
    return Costs.of(layer, siglip_block(layer), width, heads, dtype), behind


def most_bytes(
    tower: Siglip2Tower, costs: tuple[Costs, int], grid: tuple[int, int], cutting: Cutting
) -> int:
    """The most bytes beside the weights that one view of so many patches takes."""
    row, behind = costs
    total = math.prod(grid)
    size = row.dtype.size
    width, side = row.row // size, tower.embeddings.side
    values = tower.embeddings.inputs
    converted = 0 if row.dtype == mx.float32 else 1
    learned = width * side * (side * (size + 4 * converted) + 4 * grid[0])
    positions = learned + total * (4 * width + converted * row.row)
    embedded = total * (converted * values * size + 2 * row.row) + positions
    # The values in float32 are there all the time.
    return 4 * total * values + most_of(
        total,
        cutting,
        embedded + total * row.row,
        row.most(total, cutting, len(tower.encoder.layers)),
        total * (row.row + behind),
    )


def _check(vision: dict[str, Any]) -> None:
    where = "vision_config"
    check_fields(vision, where, model_type=("siglip2_vision_model",))
    check_layers(vision, "patch_size", "num_patches")
    if math.isqrt(vision["num_patches"]) ** 2 != vision["num_patches"]:
        raise BrokenConfig(f"{where}.num_patches {vision['num_patches']} must be a square number")
