"""Pixtral's vision tower: a transformer over the patches of one picture of any size.

Semantics: transformers' `PixtralVisionModel`. Ours, because mlx-vlm's computes SiLU whatever the
config asks for, has rotary tables for sides up to `image_size` only, and builds a mask that keeps
several pictures apart where there is only ever one.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.tower_bytes import Costs, conv_bytes, most_of
from vision_add_ons.vit_blocks import (
    Block,
    Cutting,
    Heads,
    Tables,
    by_heads,
    in_pieces,
    rotate,
    run_blocks,
)

ACTIVATIONS = {"gelu": nn.gelu, "silu": nn.silu}
EPS = 1e-5  # of every norm; no config has a field for it


def rotary_tables(rows: int, columns: int, head_dim: int, theta: float) -> Tables:
    """Cosines and sines that turn each head of each patch, both [rows * columns, head_dim].

    Of the frequencies, every other one goes with the patch's row, those between with its column.
    """
    frequencies = theta ** -(mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim)
    down = mx.arange(rows)[:, None, None] * frequencies[0::2]
    across = mx.arange(columns)[None, :, None] * frequencies[1::2]
    shape = (rows, columns, head_dim // 4)
    half = [mx.broadcast_to(down, shape), mx.broadcast_to(across, shape)]
    angles = mx.concatenate(half + half, axis=-1).reshape(rows * columns, head_dim)
    return mx.cos(angles), mx.sin(angles)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def __call__(self, x: mx.array, tables: Tables) -> Heads:
        projections = self.q_proj, self.k_proj, self.v_proj
        queries, keys, values = by_heads(x, self.heads, *projections)
        return rotate(queries, tables), rotate(keys, tables), values


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.attention_norm = nn.RMSNorm(width, EPS)
        self.attention = Attention(width, config["num_attention_heads"])
        self.ffn_norm = nn.RMSNorm(width, EPS)
        self.feed_forward = FeedForward(width, config["intermediate_size"], config["hidden_act"])

    def block(self) -> Block:
        def heads(x: mx.array, tables: Tables | None) -> Heads:
            assert tables is not None
            return self.attention(self.attention_norm(x), tables)

        def rest(x: mx.array, seen: mx.array) -> mx.array:
            x = x + self.attention.o_proj(seen)
            return x + self.feed_forward(self.ffn_norm(x))

        return Block(heads, rest)


class Layers(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.layers = [Layer(config) for _ in range(config["num_hidden_layers"])]


class PixtralTower(nn.Module):
    """The tower that a complete `vision_config` describes.

    Raises `UnsupportedCheckpoint` or `BrokenConfig` naming the field.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        _check(config)
        width, patch = config["hidden_size"], config["patch_size"]
        self.head_dim = width // config["num_attention_heads"]
        self.theta = float(config["rope_parameters"]["rope_theta"])
        self.patch_conv = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = nn.RMSNorm(width, EPS)
        self.transformer = Layers(config)

    def costs(self) -> Costs:
        """What a row takes in the layers."""
        layer, dtype = self.transformer.layers[0], self.patch_conv.weight.dtype
        width = self.patch_conv.weight.shape[0]
        return Costs.of(layer, layer.block(), width, width // self.head_dim, dtype, dtype)

    def most_bytes(self, total: int, states: Sequence[int], cutting: Cutting, costs: Costs) -> int:
        """The most bytes beside the weights that a picture of so many patches takes here."""
        embedded = conv_bytes(self.patch_conv.weight, total)
        embedded += total * (4 * costs.row + 6 * costs.tables)
        # Features that were taken earlier than the last.
        earlier = (len(set(states)) - 1) * total * costs.row
        return most_of(total, cutting, embedded, earlier + costs.most(total, cutting, max(states)))

    def __call__(self, pixels: mx.array, states: Sequence[int], cutting: Cutting) -> mx.array:
        """Features of the patches where they lie: [rows, columns, len(states) * hidden_size].

        `pixels` is [height, width, 3], both sides multiples of the patch's. `states` says after
        how many layers the features are taken, one behind the other if after several.
        """
        patches = self.patch_conv(pixels[None].astype(self.patch_conv.weight.dtype))[0]
        rows, columns, _ = patches.shape
        cos, sin = rotary_tables(rows, columns, self.head_dim, self.theta)
        lengths = cutting.pieces([1] * (rows * columns))
        turns = [in_pieces(turn.astype(patches.dtype), lengths) for turn in (cos, sin)]
        tables = list(zip(*turns, strict=True))
        pieces = in_pieces(self.ln_pre(patches.flatten(0, 1)), lengths)
        del patches, cos, sin
        features: dict[int, mx.array] = {}
        done = 0
        for state in sorted(set(states)):
            layers = self.transformer.layers[done:state]
            run_blocks(pieces, [layer.block() for layer in layers], cutting, tables)
            features[state] = mx.concatenate(pieces)
            done = state
        chosen = mx.concatenate([features[i] for i in states], axis=-1)
        return mx.unflatten(chosen, 0, (rows, columns))


def _check(config: dict[str, Any]) -> None:
    where = "vision_config"
    check_fields(config, where, model_type=("pixtral",))
    check_fields(config, where, hidden_act=tuple(ACTIVATIONS), num_channels=(3,))
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    positive(config, where, *sizes, "patch_size")
    head_dim, rest = divmod(config["hidden_size"], config["num_attention_heads"])
    if rest or head_dim % 4 or config["head_dim"] != head_dim:
        raise UnsupportedCheckpoint(
            f"{where}.head_dim {config['head_dim']!r} is not supported: it must be hidden_size / "
            "num_attention_heads, and a multiple of 4"
        )
    check_fields(config["rope_parameters"], f"{where}.rope_parameters", rope_type=("axial",))
