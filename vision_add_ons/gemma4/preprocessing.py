"""From a picture of any size to the squares of it that become rows.

Semantics: transformers' `Gemma4ImageProcessorPil` and `Gemma4UnifiedImageProcessor`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.picture_sizes import Size, square_tiles
from vision_add_ons.pixels import AS_THEY_ARE, Pixels, read_processor_config, scaled_alone
from vision_add_ons.torch_pixels import TorchPixels

DEFAULTS = {"max_soft_tokens": 280, "patch_size": 16, "pooling_kernel_size": 3}
MOST_ROWS = (70, 140, 280, 560, 1120)
"""Rows of a picture, at most: those that the processors take."""


class FactorAlone(TorchPixels):
    """As `TorchPixels`, of a processor that does not normalise."""

    def normalised(self, pixels: np.ndarray) -> mx.array:
        return mx.array(pixels.astype(np.float32) * np.float32(self.factor))


@dataclass(frozen=True)
class Squares:
    """How pictures are cut: each square of `pool` x `pool` patches, `patch` pixels wide, becomes a
    row, and a picture has `most_rows` at most."""

    patch: int
    pool: int
    most_rows: int
    pixels: Pixels

    @classmethod
    def read(cls, folder: Path, vision: dict[str, Any], torch: bool = False) -> "Squares":
        """The folder's saved settings, or the processor's; `torch` for one that runs on PyTorch.

        Raises `UnsupportedCheckpoint` or `BrokenConfig`.
        """
        positive(vision, "vision_config", "patch_size", "pooling_kernel_size")
        given = {k: v for k, v in read_processor_config(folder).items() if v is not None}
        saved, where = {**DEFAULTS, **given}, "preprocessor_config"
        check_fields(saved, where, max_soft_tokens=MOST_ROWS)
        for field in ("patch_size", "pooling_kernel_size"):
            check_fields(saved, where, **{field: (vision[field],)})
        scaling = saved.setdefault("do_normalize", False) is False
        kind = (FactorAlone if scaling else TorchPixels) if torch else Pixels
        pixels = kind.read(scaled_alone(saved), Image.Resampling.BICUBIC, *AS_THEY_ARE.values())
        if isinstance(pixels, TorchPixels):
            pixels.check()
        return cls(
            vision["patch_size"], vision["pooling_kernel_size"], saved["max_soft_tokens"], pixels
        )

    @property
    def side(self) -> int:
        """Pixels along a row's square."""
        return self.patch * self.pool

    def check_positions(self, field: str, positions: int, patches: bool) -> None:
        """Raise `UnsupportedCheckpoint` where a long picture has more `patches`, or rows, along a
        side than there are learned positions."""
        longest = self.most_rows * (self.pool if patches else 1)
        if longest > positions:
            raise UnsupportedCheckpoint(
                f"vision_config.{field} {positions} is not supported: pictures of max_soft_tokens "
                f"{self.most_rows} may have {longest} positions along a side"
            )

    def grid(self, size: Size) -> Size:
        """Lines and columns of the squares of a picture of this width and height: as many as its
        shape allows, and at least one."""
        width, height = size
        target = self.most_rows * self.pool**2 * self.patch**2
        factor = math.sqrt(target / (height * width))
        lines, columns = (math.floor(factor * edge / self.side) for edge in (height, width))
        if not lines:
            return 1, min(width // height, self.most_rows)
        if not columns:
            return min(height // width, self.most_rows), 1
        return lines, columns

    def cut(self, image: Image.Image) -> np.ndarray:
        """The squares of an RGB picture, line by line: uint8 [rows, side, side, 3]."""
        lines, columns = self.grid(image.size)
        resized = self.pixels.resized(image, columns * self.side, lines * self.side)
        return square_tiles(resized, self.side)

    def patches(self, squares: np.ndarray) -> np.ndarray:
        """Those of each square behind each other: uint8 [patches, patch, patch, 3]."""
        return np.concatenate([square_tiles(square, self.patch) for square in squares])


def patch_places(grid: Size, pool: int) -> np.ndarray:
    """Column and line of each patch, in the order of `Squares.patches`: int [patches, 2]."""
    lines, columns = grid
    line, column, down, across = np.meshgrid(
        *map(np.arange, (lines, columns, pool, pool)), indexing="ij"
    )
    places = (column * pool + across, line * pool + down)
    return np.stack([axis.reshape(-1) for axis in places], axis=1)
