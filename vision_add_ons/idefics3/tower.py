"""The vision tower of Idefics3: SigLIP's layers over tiles, which see nothing of each other.

Semantics: transformers' `Idefics3VisionTransformer`. Ours, because mlx-vlm's computes all tiles at
once, in memory that grows with their number, and leaves its default in the last norm's `eps`.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.siglip import siglip_block
from vision_add_ons.siglip_layers import SiglipEncoder, check_layers
from vision_add_ons.tower_bytes import Costs, conv_bytes, most_of
from vision_add_ons.vit_blocks import Cutting, run_blocks

SIDES = (*range(1, 19), *range(20, 25), 26, 27, 28, 30, 32, 64)
"""Patches along a tile's side for which each has a position of its own: the reference finds it by
fractions of the side in float32, and for other sides its rounding puts two patches in one place."""


class Embeddings(nn.Module):
    """Patches of tiles, and where they lie: [tiles, side * side, width] of [tiles, h, w, 3]."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, patch = vision["hidden_size"], vision["patch_size"]
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Embedding((vision["image_size"] // patch) ** 2, width)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels).flatten(1, 2)
        return patches + self.position_embedding(mx.arange(patches.shape[1]))


class Idefics3Tower(nn.Module):
    """The tower that a complete `vision_config` describes.

    Raises `UnsupportedCheckpoint` or `BrokenConfig` naming the field.
    """

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        _check(vision)
        self.side = vision["image_size"] // vision["patch_size"]
        self.embeddings = Embeddings(vision)
        self.encoder = SiglipEncoder(vision)
        self.post_layernorm = nn.LayerNorm(vision["hidden_size"], vision["layer_norm_eps"])

    def __call__(self, pixels: mx.array, cutting: Cutting) -> mx.array:
        """Features [tiles, patches, width] of tiles' pixels [tiles, height, width, 3]."""
        embedded = self.embeddings(pixels.astype(self.post_layernorm.weight.dtype))
        tiles, patches, _ = embedded.shape
        rows = [embedded.flatten(0, 1)]
        del embedded
        blocks = [siglip_block(layer, windowed=True) for layer in self.encoder.layers]
        run_blocks(rows, blocks, cutting, windows=[patches] * tiles)
        return mx.unflatten(self.post_layernorm(rows.pop()), 0, (tiles, patches))

    def costs(self) -> Costs:
        """What a row takes in the layers."""
        layer, weight = self.encoder.layers[0], self.post_layernorm.weight
        heads = layer.self_attn.num_heads
        return Costs.of(layer, siglip_block(layer), weight.size, heads, weight.dtype)

    def most_bytes(self, tiles: int, behind: int, cutting: Cutting, costs: Costs) -> int:
        """The most bytes beside pixels and weights that so many tiles take at once.

        `behind` is what each takes behind the layers.
        """
        patches = self.side**2
        total = tiles * patches
        return most_of(
            total,
            cutting,
            conv_bytes(self.embeddings.patch_embedding.weight, total) + 3 * total * costs.row,
            costs.apart(total, cutting, len(self.encoder.layers), patches),
            2 * total * costs.row + tiles * behind,
        )


def _check(vision: dict[str, Any]) -> None:
    where = "vision_config"
    check_layers(vision, "image_size", "patch_size")
    side = vision["image_size"] // vision["patch_size"]
    if side not in SIDES:
        raise UnsupportedCheckpoint(
            f"{where}.patch_size {vision['patch_size']} makes {side} patches along a side of "
            f"image_size {vision['image_size']}, whose positions are not supported"
        )
