"""Gemma 4's tower: a transformer over a picture's patches, pooled to rows, and the projector.

Semantics: transformers' `Gemma4VisionModel` and `Gemma4MultimodalEmbedder`. Ours, because mlx-vlm's
pads each picture and takes it in one piece.
"""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.gemma4.preprocessing import patch_places
from vision_add_ons.picture_sizes import Size
from vision_add_ons.tower_bytes import SAMPLE, Costs, most_of, per_row
from vision_add_ons.vit_blocks import (
    Block,
    Cutting,
    Heads,
    Tables,
    by_heads,
    in_pieces,
    one_by_one,
    rotate,
    run_blocks,
    stretches,
)


class ClippedLinear(nn.Module):
    """A linear layer whose input and output are held within bounds, where there are any."""

    BOUNDS = ("input_min", "input_max", "output_min", "output_max")

    def __init__(self, inputs: int, outputs: int, clipped: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        for name in self.BOUNDS if clipped else ():
            self[name] = mx.array(0.0)

    def __call__(self, x: mx.array) -> mx.array:
        if "input_min" not in self:
            return self.linear(x)
        x = self.linear(mx.clip(x, self.input_min, self.input_max))
        return mx.clip(x, self.output_min, self.output_max)


class Attention(nn.Module):
    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, clipped = vision["hidden_size"], vision["use_clipped_linears"]
        self.heads, head_dim = vision["num_attention_heads"], vision["head_dim"]
        inner, self.eps = self.heads * head_dim, vision["rms_norm_eps"]
        self.q_proj = ClippedLinear(width, inner, clipped)
        self.k_proj = ClippedLinear(width, inner, clipped)
        self.v_proj = ClippedLinear(width, inner, clipped)
        self.o_proj = ClippedLinear(inner, width, clipped)
        self.q_norm = nn.RMSNorm(head_dim, self.eps)
        self.k_norm = nn.RMSNorm(head_dim, self.eps)


class FeedForward(nn.Module):
    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, inner = vision["hidden_size"], vision["intermediate_size"]
        clipped = vision["use_clipped_linears"]
        self.gate_proj = ClippedLinear(width, inner, clipped)
        self.up_proj = ClippedLinear(width, inner, clipped)
        self.down_proj = ClippedLinear(inner, width, clipped)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, eps = vision["hidden_size"], vision["rms_norm_eps"]
        self.self_attn = Attention(vision)
        self.mlp = FeedForward(vision)
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(width, eps)
        self.post_feedforward_layernorm = nn.RMSNorm(width, eps)


def block_of(layer: Layer) -> Block:
    """One layer: half of each head is turned by columns, half by lines."""
    attention = layer.self_attn

    def turned(x: mx.array, tables: Tables) -> mx.array:
        cos, sin = (mx.unflatten(table, -1, (2, -1)) for table in tables)
        made = rotate(mx.unflatten(x, -1, (2, -1)), (cos, sin)).flatten(-2)
        return made.astype(x.dtype)  # tables are float32, whatever the rows are in

    def heads(x: mx.array, tables: Tables | None) -> Heads:
        assert tables is not None
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        made = by_heads(layer.input_layernorm(x), attention.heads, *projections)
        queries = turned(attention.q_norm(made[0]), tables)
        keys = turned(attention.k_norm(made[1]), tables)
        return queries, keys, mx.fast.rms_norm(made[2], None, attention.eps)

    def rest(x: mx.array, seen: mx.array) -> mx.array:
        x = x + layer.post_attention_layernorm(attention.o_proj(seen))
        made = layer.mlp(layer.pre_feedforward_layernorm(x))
        return x + layer.post_feedforward_layernorm(made)

    return Block(heads, rest, scale=1.0)


class PatchEmbedder(nn.Module):
    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width = vision["hidden_size"]
        self.input_proj = nn.Linear(3 * vision["patch_size"] ** 2, width, bias=False)
        self.position_embedding_table = mx.zeros((2, vision["position_embedding_size"], width))

    def __call__(self, values: mx.array, places: mx.array) -> mx.array:
        """Rows [n, width] of patches, float32 [n, patch, patch, 3] from 0 to 1, at these places
        [n, 2]."""
        across, down = self.position_embedding_table
        rows = self.input_proj((2 * (values.flatten(1) - 0.5)).astype(across.dtype))
        return rows + (across[places[:, 0]] + down[places[:, 1]])


class Encoder(nn.Module):
    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        self.layers = [Layer(vision) for _ in range(vision["num_hidden_layers"])]


class Gemma4Tower(nn.Module):
    """The tower that a complete `vision_config` describes.

    Raises `UnsupportedCheckpoint` or `BrokenConfig` naming the field.
    """

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        _check(vision)
        self.theta, self.head_dim = vision["rope_parameters"]["rope_theta"], vision["head_dim"]
        self.pool, self.width = vision["pooling_kernel_size"], vision["hidden_size"]
        self.patch_embedder = PatchEmbedder(vision)
        self.encoder = Encoder(vision)
        if vision["standardize"]:
            self.std_bias = mx.zeros(self.width)
            self.std_scale = mx.zeros(self.width)

    def __call__(
        self,
        patches: np.ndarray,
        values: Callable[[np.ndarray], mx.array],
        grid: Size,
        cutting: Cutting,
    ) -> mx.array:
        """A picture's rows [rows, width], before the projector.

        `patches` [patches, ...] stand in the order of `patch_places`; `values` makes of some of
        them what `PatchEmbedder` reads.
        """
        each = self.pool**2
        lengths = cutting.pieces([each] * (len(patches) // each))
        places = patch_places(grid, self.pool)
        turns = [in_pieces(turn, lengths) for turn in self.tables(places)]

        def embedded(part: slice) -> mx.array:
            return self.patch_embedder(values(patches[part]), mx.array(places[part]))

        rows = one_by_one(stretches(lengths), embedded, several=len(lengths) > 1)
        blocks = [block_of(layer) for layer in self.encoder.layers]
        run_blocks(rows, blocks, cutting, list(zip(*turns, strict=True)))
        pooled = one_by_one(range(len(rows)), lambda i: self.pooled(rows[i]), len(rows) > 1)
        rows.clear()
        return mx.concatenate(pooled)

    def tables(self, places: np.ndarray) -> Tables:
        """Cosines and sines [patches, head_dim], float32."""
        half = self.head_dim // 2
        exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
        turns = np.float32(1) / np.float32(self.theta) ** exponents
        angles = places[:, :, None].astype(np.float32) * turns
        both = mx.array(np.concatenate([angles, angles], axis=-1)).flatten(1)
        return mx.cos(both), mx.sin(both)

    def pooled(self, x: mx.array) -> mx.array:
        """From patches [n, width] to rows [n / pool^2, width]."""
        dtype = x.dtype
        means = mx.unflatten(x.astype(mx.float32), 0, (-1, self.pool**2)).mean(1)
        made = means.astype(dtype).astype(mx.float32) * self.width**0.5
        if "std_bias" in self:
            bias, scale = (a.astype(mx.float32) for a in (self.std_bias, self.std_scale))
            made = (made - bias) * scale
        return made.astype(dtype)


class Projector(nn.Module):
    """From rows of the tower to those of the decoder."""

    def __init__(self, inputs: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embedding_projection = nn.Linear(inputs, outputs, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.embedding_projection(mx.fast.rms_norm(x, None, self.eps))


def tower_costs(tower: Gemma4Tower, projector: Projector) -> tuple[Costs, int]:
    """What a patch takes in the blocks, and where patches become rows; see `most_bytes`."""
    layer, dtype = tower.encoder.layers[0], tower.patch_embedder.position_embedding_table.dtype
    count = math.ceil(SAMPLE / tower.pool**2) * tower.pool**2
    behind = per_row(
        lambda x: projector(tower.pooled(x)),
        mx.zeros((count, tower.width), dtype),
        modules=[tower, projector],
    )
    heads = layer.self_attn.heads
    return Costs.of(layer, block_of(layer), tower.width, heads, dtype, mx.float32), behind


def most_bytes(tower: Gemma4Tower, costs: tuple[Costs, int], grid: Size, cutting: Cutting) -> int:
    """The most bytes beside the weights that one picture takes."""
    row, behind = costs
    values = tower.patch_embedder.input_proj.weight.shape[-1]
    total = math.prod(grid) * tower.pool**2
    piece = min(total, cutting.rows)
    return most_of(
        total,
        cutting,
        # The values in float32, twice, and in the rows' dtype; rows, positions of both, sums.
        piece * (3 * 4 * values + 5 * row.row) + total * (row.row + 4 * row.tables),
        row.most(total, cutting, len(tower.encoder.layers)),
        total * (row.row + row.tables + behind),
    )


def _check(vision: dict[str, Any]) -> None:
    where = "vision_config"
    check_fields(vision, where, model_type=("gemma4_vision",), attention_bias=(None, False))
    check_fields(vision, where, hidden_activation=("gelu_pytorch_tanh",))
    check_fields(vision, where, use_clipped_linears=(True, False), standardize=(True, False))
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    positive(vision, where, *sizes, "head_dim", "position_embedding_size")
    check_fields(vision, where, num_key_value_heads=(vision["num_attention_heads"],))
    width, heads = vision["hidden_size"], vision["num_attention_heads"]
    check_fields(vision, where, head_dim=(width / heads,))
    if vision["head_dim"] % 4:
        raise BrokenConfig(f"{where}.head_dim {vision['head_dim']} is no multiple of 4")
    if vision["pooling_kernel_size"] == 1:  # transformers would keep what fills up, and no rows
        raise UnsupportedCheckpoint(f"{where}.pooling_kernel_size 1 is not supported")
    rope = vision["rope_parameters"]
    if rope.get("rope_type") not in ("axial", "default"):
        raise BrokenConfig(f"{where}.rope_parameters' rope_type must be axial, not {rope}")
