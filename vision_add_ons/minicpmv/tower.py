"""MiniCPM-V's tower: SigLIP's layers over the patches of one view of any shape. Behind one of the
layers each square of 2 x 2 patches becomes one.

Semantics: transformers' `MiniCPMV4_6VisionModel`, and `MiniCPMV4_6Merger` behind it. Ours, because
mlx-vlm's merges by another activation, and with its own default in place of the config's `eps`.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.siglip import siglip_block
from vision_add_ons.siglip_layers import Attention, SiglipEncoder, check_layers
from vision_add_ons.tower_bytes import SAMPLE, Costs, conv_bytes, most_of, per_row
from vision_add_ons.vit_blocks import Block, Cutting, in_pieces, one_by_one, run_blocks

FOUR = 4
"""Patches that become one."""
PUBLISHED = 70
SIDES = (1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 32, 33, 45, 64, PUBLISHED, 85, 90, 97, 128)
"""Learned positions along a side for which it is clear which a patch has: the reference compares
fractions in float32, and elsewhere it depends on the processor how some come out. So it does for a
few patches with the published one, for which we do as with wide vectors, and as float64 rounded."""


def nearest(side: int, count: int) -> np.ndarray:
    """Which of `side` learned positions along an axis each of `count` patches has: int [count]."""
    step = 1 / side
    borders = (step + np.arange(side - 1) * step).astype(np.float32)
    places = np.arange(count, dtype=np.float32) / np.float32(count)
    return np.searchsorted(borders, places, side="right")


def in_squares(x: mx.array, times: int) -> mx.array:
    """Rows [lines, columns, width] as [lines * columns, width], those that become one beside each
    other: fours of patches, and where it is done `times` = 2 times, fours of fours."""
    lines, columns, width = x.shape
    side = 2**times
    x = x.reshape(lines // side, *[2] * times, columns // side, *[2] * times, width)
    order = np.arange(2 * times + 2).reshape(2, -1).T.flatten()
    return x.transpose(*order.tolist(), 2 * times + 2).reshape(-1, width)


class Embeddings(nn.Module):
    """Patches of a view, and where they lie: [patches, width] of [height, width, 3]."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, patch = vision["hidden_size"], vision["patch_size"]
        self.side = vision["image_size"] // patch
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Embedding(self.side**2, width)

    def __call__(self, pixels: mx.array, times: int) -> mx.array:
        patches = self.patch_embedding(pixels[None]).squeeze(0)
        lines, columns = (nearest(self.side, count) for count in patches.shape[:2])
        where = mx.array(lines[:, None] * self.side + columns)
        return in_squares(patches + self.position_embedding(where), times)


class WindowMerger(nn.Module):
    """Four patches that see each other become one: [patches, width] to [patches / 4, width]."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, eps = vision["hidden_size"], vision["layer_norm_eps"]
        self.self_attn = Attention(width, vision["num_attention_heads"])
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.pre_norm = nn.LayerNorm(FOUR * width, eps)
        self.linear_1 = nn.Linear(FOUR * width, FOUR * vision["intermediate_size"])
        self.linear_2 = nn.Linear(FOUR * vision["intermediate_size"], width)

    def __call__(self, x: mx.array) -> mx.array:
        """Behind `window_block`."""
        fours = mx.unflatten(x, 0, (-1, FOUR))
        inner = nn.gelu_approx(self.linear_1(self.pre_norm(fours.flatten(1))))
        return self.linear_2(inner) + fours.mean(1)


def window_block(merger: nn.Module) -> Block:
    """The attention of a `WindowMerger`."""
    attention = merger.self_attn
    heads = siglip_block(merger).heads
    return Block(heads, lambda x, seen: x + attention.out_proj(seen), windowed=True)


class MiniCPMVTower(nn.Module):
    """The tower that a complete `vision_config` describes; it is merged within if `merging`.

    Raises `UnsupportedCheckpoint` or `BrokenConfig` naming the field.
    """

    def __init__(self, vision: dict[str, Any], merging: bool) -> None:
        super().__init__()
        _check(vision)
        self.insert = vision["insert_layer_id"] + 1
        self.merging = merging
        self.embeddings = Embeddings(vision)
        self.encoder = SiglipEncoder(vision)
        self.vit_merger = WindowMerger(vision)
        self.post_layernorm = nn.LayerNorm(vision["hidden_size"], vision["layer_norm_eps"])

    def __call__(self, pixels: mx.array, cutting: Cutting) -> mx.array:
        """Features of one view's pixels [height, width, 3]: [patches, width], or a quarter of as
        many; fours of them follow each other."""
        pixels = pixels.astype(self.post_layernorm.weight.dtype)
        rows = [self.embeddings(pixels, 2 if self.merging else 1)]
        total = len(rows[0])
        rows = in_pieces(rows.pop(), cutting.pieces([FOUR] * (total // FOUR)))
        blocks = [siglip_block(layer) for layer in self.encoder.layers]
        before = self.insert if self.merging else len(blocks)
        run_blocks(rows, blocks[:before], cutting)
        if self.merging:
            total //= FOUR
            run_blocks(rows, [window_block(self.vit_merger)], cutting, windows=[FOUR] * total)
            merged = mx.concatenate(one_by_one(rows, self.vit_merger, several=len(rows) > 1))
            rows = in_pieces(merged, cutting.pieces([1] * total))
            del merged
            run_blocks(rows, blocks[before:], cutting)
        whole = mx.concatenate(rows)
        rows.clear()
        return self.post_layernorm(whole)


class Last(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(FOUR * width, 1e-6)  # no config has a field for it
        self.linear_1 = nn.Linear(FOUR * width, FOUR * width)
        self.linear_2 = nn.Linear(FOUR * width, out)

    def __call__(self, x: mx.array) -> mx.array:
        fours = mx.unflatten(x, 0, (-1, FOUR)).flatten(1)
        return self.linear_2(nn.gelu(self.linear_1(self.pre_norm(fours))))


class Merger(nn.Module):
    """Four features become a row as wide as the decoder's: [n, width] to [n / 4, out]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.mlp = [Last(width, out)]

    def __call__(self, x: mx.array) -> mx.array:
        rows: mx.array = self.mlp[0](x)
        return rows


class TowerCosts:
    """What a view takes of memory in the tower and behind it, asked when both are loaded."""

    def __init__(self, tower: MiniCPMVTower, merger: Merger) -> None:
        self.tower = tower
        layer, norm, inner = tower.encoder.layers[0], tower.post_layernorm, tower.vit_merger
        width, heads, dtype = norm.weight.size, layer.self_attn.num_heads, norm.weight.dtype
        sample = mx.zeros((SAMPLE, width), dtype)
        self.layers = Costs.of(layer, siglip_block(layer), width, heads, dtype)
        self.windows = Costs.of(inner, window_block(inner), width, heads, dtype)
        self.inner = per_row(inner, sample, modules=[inner])
        self.behind = per_row(lambda x: merger(norm(x)), sample, modules=[norm, merger])

    def most_bytes(self, patches: int, cutting: Cutting) -> int:
        """The most bytes beside the weights that one view of so many patches takes."""
        tower, row, depth = self.tower, self.layers.row, len(self.tower.encoder.layers)
        kernel = tower.embeddings.patch_embedding.weight
        embedded = conv_bytes(kernel, patches) + 4 * patches * row
        # The pixels in float32 are there all the time.
        pixels = 4 * patches * kernel.size // kernel.shape[0]
        if not tower.merging:
            behind = patches * (2 * row + self.behind)
            layers = self.layers.most(patches, cutting, depth)
            return pixels + most_of(patches, cutting, embedded, layers, behind)
        after = patches // FOUR
        later = most_of(
            after,
            cutting,
            patches * (row + self.inner),
            self.layers.most(after, cutting, depth - tower.insert),
            after * (2 * row + self.behind),
        )
        layers = self.layers.most(patches, cutting, tower.insert)
        windows = self.windows.most(patches, cutting, 1, window=FOUR)
        return pixels + most_of(patches, cutting, embedded, layers, windows, later)


def _check(vision: dict[str, Any]) -> None:
    where = "vision_config"
    check_layers(vision, "image_size", "patch_size")
    side = vision["image_size"] // vision["patch_size"]
    if side not in SIDES:
        raise UnsupportedCheckpoint(
            f"{where}.patch_size {vision['patch_size']} makes {side} positions along a side of "
            f"image_size {vision['image_size']}, which are not supported"
        )
    if vision["insert_layer_id"] not in range(vision["num_hidden_layers"]):
        raise BrokenConfig(
            f"insert_layer_id {vision['insert_layer_id']} is no number of one of the tower's "
            f"{vision['num_hidden_layers']} layers"
        )
