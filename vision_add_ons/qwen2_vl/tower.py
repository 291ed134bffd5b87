"""One picture's way through the tower of Qwen2-VL or Qwen2.5-VL, whose modules are mlx-vlm's."""

import math
from collections.abc import Callable
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.tower_bytes import SAMPLE, Costs, conv_bytes, most_of, per_row
from vision_add_ons.vit_blocks import (
    Cutting,
    in_pieces,
    one_by_one,
    qkv_block,
    run_blocks,
    settle,
    stretches,
)

FOUR = 4
"""Patches that become one row."""


def encode(
    tower: nn.Module,
    patches: np.ndarray,
    values: Callable[[np.ndarray], mx.array],
    grid: tuple[int, int],
    cutting: Cutting,
) -> mx.array:
    """The rows of one picture: [patches / 4, hidden_size].

    `patches` [patches, ...] stand in the fours that become a row; `values` makes of some of them
    what the tower reads. `grid` says how many stand below and beside each other.
    """
    place = mx.array([[1, *grid]])
    angles = tower.rot_pos_emb(place)
    whole = getattr(tower, "fullatt_block_indexes", None)
    windows, order = [FOUR] * (len(patches) // FOUR), None
    if whole is not None:
        index, ends = tower.get_window_index(place)
        windows = [end - start for start, end in pairwise(ends.tolist()) if end > start]
        order = np.array(index)
        patches = patches.reshape(-1, FOUR, *patches.shape[1:])[order].reshape(patches.shape)
        angles = mx.unflatten(angles, 0, (-1, FOUR))[index].flatten(0, 1)
    lengths = cutting.pieces(windows)
    turns = [in_pieces(mx.tile(turn(angles), (1, 2)), lengths) for turn in (mx.cos, mx.sin)]

    del angles
    dtype = tower.patch_embed.proj.weight.dtype

    def embedded(part: slice) -> mx.array:
        made: mx.array = tower.patch_embed(values(patches[part]).astype(dtype))
        return made

    rows = one_by_one(stretches(lengths), embedded, several=len(lengths) > 1)
    blocks = [
        qkv_block(layer, layer.attn.num_heads, windowed=whole is not None and number not in whole)
        for number, layer in enumerate(tower.blocks)
    ]
    tables = list(zip(*turns, strict=True))
    run_blocks(rows, blocks, cutting, tables, () if whole is None else windows)
    for i in range(len(rows)):
        rows[i] = tower.merger(rows[i])
        settle(rows[i], when=len(rows) > 1)
    merged = mx.concatenate(rows)
    return merged if order is None else merged[mx.array(np.argsort(order))]


def tower_costs(tower: nn.Module) -> tuple[Costs, int]:
    """What a patch takes in the tower's blocks, and in its merger; see `most_bytes`."""
    layer, kernel = tower.blocks[0], tower.patch_embed.proj.weight
    width, heads = kernel.shape[0], layer.attn.num_heads
    block = qkv_block(layer, heads)
    merged = per_row(tower.merger, mx.zeros((SAMPLE, width), kernel.dtype), modules=[tower.merger])
    return Costs.of(layer, block, width, heads, kernel.dtype, mx.float32), merged


def most_bytes(
    tower: nn.Module, costs: tuple[Costs, int], grid: tuple[int, int], cutting: Cutting
) -> int:
    """The most bytes beside the weights that `encode` takes."""
    row, merged = costs
    kernel = tower.patch_embed.proj.weight
    total, values = math.prod(grid), kernel.size // kernel.shape[0]
    whole = getattr(tower, "fullatt_block_indexes", None)
    window = 0 if whole is None else (tower.window_size // tower.patch_size) ** 2
    piece = min(total, cutting.rows + window)
    made = total // FOUR * tower.merger.mlp[-1].weight.shape[0] * row.dtype.size
    return most_of(
        total,
        cutting,
        # The values in float32, for each frame, and once more in order.
        piece * values * 12 + conv_bytes(kernel, piece) + total * (row.row + 4 * row.tables),
        row.most(total, cutting, len(tower.blocks), window),
        total * (row.row + row.tables) + piece * merged,
        total * row.tables + 3 * made,
    )
