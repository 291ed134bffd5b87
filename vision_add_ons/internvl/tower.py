"""InternVL's vision tower and projector: a transformer over the patches of a tile, and a row for
each square of them.

Semantics: transformers' `InternVLVisionModel` and `InternVLModel.get_image_features`. Ours, so that
tiles go through it some at a time.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.configs import check_fields, check_heads, positive
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.tower_bytes import Costs, conv_bytes, most_of
from vision_add_ons.vit_blocks import Block, Cutting, Heads, Tables, in_pieces, run_blocks

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}
QK_EPS = 1e-6  # no config has a field for it


class PatchEmbeddings(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch, patch)


class Embeddings(nn.Module):
    def __init__(self, width: int, side: int, patch: int) -> None:
        super().__init__()
        self.cls_token = mx.zeros((1, 1, width))
        self.position_embeddings = mx.zeros((1, (side // patch) ** 2 + 1, width))
        self.patch_embeddings = PatchEmbeddings(width, patch)

    def __call__(self, tiles: mx.array) -> mx.array:
        """From [tiles, side, side, 3] to [tiles, patches + 1, width]."""
        kernel = self.patch_embeddings.projection.weight
        patches = self.patch_embeddings.projection(tiles.astype(kernel.dtype)).flatten(1, 2)
        first = mx.broadcast_to(self.cls_token, (len(tiles), 1, patches.shape[-1]))
        return mx.concatenate([first, patches], axis=1) + self.position_embeddings


class Attention(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, bias = config["hidden_size"], config["attention_bias"]
        self.heads = config["num_attention_heads"]
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.projection_layer = nn.Linear(width, width)
        normed = config["use_qk_norm"]
        self.q_norm = nn.RMSNorm(width, QK_EPS) if normed else nn.Identity()
        self.k_norm = nn.RMSNorm(width, QK_EPS) if normed else nn.Identity()

    def __call__(self, x: mx.array) -> Heads:
        made = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_proj(x)
        queries, keys, values = (mx.unflatten(p, -1, (self.heads, -1)).swapaxes(0, 1) for p in made)
        return queries, keys, values


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, norm = config["hidden_size"], NORMS[config["norm_type"]]
        self.layernorm_before = norm(width, config["layer_norm_eps"])
        self.attention = Attention(config)
        self.lambda_1 = mx.ones(width)
        self.layernorm_after = norm(width, config["layer_norm_eps"])
        self.mlp = FeedForward(width, config["intermediate_size"])
        self.lambda_2 = mx.ones(width)

    def block(self, windowed: bool = False) -> Block:
        def heads(x: mx.array, tables: Tables | None) -> Heads:
            return self.attention(self.layernorm_before(x))

        def rest(x: mx.array, seen: mx.array) -> mx.array:
            x = x + self.lambda_1 * self.attention.projection_layer(seen)
            return x + self.lambda_2 * self.mlp(self.layernorm_after(x))

        return Block(heads, rest, windowed)


class Encoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.layer = [Layer(config) for _ in range(config["num_hidden_layers"])]


class InternVLTower(nn.Module):
    """The tower that a complete `vision_config` describes.

    Raises `UnsupportedCheckpoint` or `BrokenConfig` naming the field.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        _check(config)
        self.side, self.patch = (_square(config, name) for name in ("image_size", "patch_size"))
        if self.side % self.patch:
            raise BrokenConfig(
                f"vision_config.patch_size {self.patch} does not divide image_size {self.side}"
            )
        self.grid = self.side // self.patch
        self.embeddings = Embeddings(config["hidden_size"], self.side, self.patch)
        self.encoder = Encoder(config)

    def at_once(self, cutting: Cutting) -> int:
        """How many tiles go through the tower together."""
        rows, heads = self.grid**2 + 1, self.encoder.layer[0].attention.heads
        return max(1, min(cutting.rows // rows, cutting.scores // (4 * heads * rows * rows)))

    def costs(self) -> Costs:
        """What a row takes in the layers."""
        layer, kernel = self.encoder.layer[0], self.embeddings.patch_embeddings.projection.weight
        return Costs.of(layer, layer.block(), len(kernel), layer.attention.heads, kernel.dtype)

    def most_bytes(
        self, tiles: int, state: int, behind: int, cutting: Cutting, costs: Costs
    ) -> int:
        """The most bytes beside the weights that so many tiles together take on their way to rows.

        `behind` is what one of them takes behind the tower.
        """
        kernel = self.embeddings.patch_embeddings.projection.weight
        window = self.grid**2 + 1
        total = tiles * window
        if tiles == 1:
            blocks = costs.most(total, cutting, state)
        else:
            blocks = costs.apart(total, cutting, state, window)
        # The three values of a pixel in float32 are there all the time.
        return 12 * tiles * self.side**2 + most_of(
            total,
            cutting,
            conv_bytes(kernel, total) + 3 * total * costs.row,
            blocks,
            2 * total * costs.row + tiles * behind,
        )

    def __call__(self, tiles: mx.array, state: int, cutting: Cutting) -> mx.array:
        """Features of the tiles' patches after `state` layers: [tiles, grid, grid, width].

        `tiles` is [tiles, side, side, 3].
        """
        embedded = self.embeddings(tiles)
        count, rows, width = embedded.shape
        # A tile that is alone is cut as any picture; of several, none sees another.
        several = count > 1
        lengths = [count * rows] if several else cutting.pieces([1] * rows)
        pieces = in_pieces(embedded.flatten(0, 1), lengths)
        del embedded
        blocks = [layer.block(several) for layer in self.encoder.layer[:state]]
        run_blocks(pieces, blocks, cutting, windows=[rows] * count if several else ())
        features = mx.concatenate(pieces).reshape(count, rows, width)[:, 1:]
        return mx.unflatten(features, 1, (self.grid, self.grid))


class Projector(nn.Module):
    """From squares of `merged` x `merged` patches to rows of the decoder's width."""

    def __init__(self, width: int, merged: int, hidden_size: int) -> None:
        super().__init__()
        self.merged = merged
        self.layer_norm = nn.LayerNorm(width * merged**2)
        self.linear_1 = nn.Linear(width * merged**2, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        """From [tiles, grid, grid, width] to [rows, hidden_size], tile by tile and line by line."""
        tiles, grid, _, width = x.shape
        cut = x.reshape(tiles, grid // self.merged, self.merged, -1, self.merged, width)
        # A square's patches stand behind each other as they are read.
        squares = cut.swapaxes(2, 3).reshape(-1, self.merged**2 * width)
        return self.linear_2(nn.gelu(self.linear_1(self.layer_norm(squares))))


def _check(config: dict[str, Any]) -> None:
    where = "vision_config"
    check_fields(
        config,
        where,
        model_type=("internvl_vision",),
        hidden_act=("gelu",),
        norm_type=tuple(NORMS),
        num_channels=(3,),
        use_absolute_position_embeddings=(True,),
        use_mask_token=(False,),
        use_mean_pooling=(True,),
    )
    positive(config, where, "intermediate_size", "num_hidden_layers")
    check_heads(config, where)


def _square(config: dict[str, Any], field: str) -> int:
    """The side of a square that a field gives as height and width."""
    sides = list(config[field])
    if len(sides) != 2 or sides[0] != sides[1]:
        raise UnsupportedCheckpoint(f"vision_config.{field} {sides} is no square")
    positive({field: sides[0]}, "vision_config", field)
    return int(sides[0])
