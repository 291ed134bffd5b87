"""What picture sizes become in several families, by transformers' image processors."""

import math
from collections.abc import Iterable

import numpy as np

Size = tuple[int, int]
"""Width and height, or columns and rows."""


def between(size: Size, rounded: Size, side: int, least: int, most: int, frames: int = 1) -> Size:
    """What a picture of this width and height is brought to: what it is `rounded` to, if that has
    `least` to `most` pixels in all, each counted `frames` times; else whole squares of `side`
    pixels with about its shape.

    Semantics: `smart_resize` of transformers' Qwen2-VL, GLM-4V and LFM2-VL.
    """
    width, height = rounded
    pixels = frames * size[0] * size[1]
    if frames * width * height > most:
        shrink = math.sqrt(pixels / most)
        lengths = (math.floor(length / shrink / side) * side for length in size)
        width, height = (max(side, length) for length in lengths)
    elif frames * width * height < least:
        grow = math.sqrt(least / pixels)
        width, height = (math.ceil(length * grow / side) * side for length in size)
    return width, height


def nearest_grid(size: Size, grids: Iterable[Size], tile: int) -> Size:
    """Of the columns and rows that tiles of `tile` pixels may stand in, those whose shape is
    nearest to a picture's; (1, 1) if there are none.

    Of equally near ones the later, as long as the picture has more than half its pixels.
    Semantics: transformers' `GotOcr2ImageProcessor` and `Lfm2VlImageProcessor`.
    """
    width, height = size
    best, least_off = (1, 1), math.inf
    for columns, rows in grids:
        off = abs(width / height - columns / rows)
        filled = width * height > 0.5 * tile * tile * columns * rows
        if off < least_off or (off == least_off and filled):
            best, least_off = (columns, rows), off
    return best


def square_tiles(pixels: np.ndarray, side: int) -> np.ndarray:
    """The tiles of a picture, line by line: [tiles, side, side, 3] of [height, width, 3]."""
    height, width, _ = pixels.shape
    lines = pixels.reshape(height // side, side, width // side, side, 3)
    return lines.swapaxes(1, 2).reshape(-1, side, side, 3)
