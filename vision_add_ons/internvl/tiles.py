"""How a picture is cut into tiles. Semantics: transformers' `GotOcr2ImageProcessorPil`, asked to
crop to patches, as `InternVLProcessor` asks it whatever is saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vision_add_ons.configs import positive
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.picture_sizes import nearest_grid, square_tiles
from vision_add_ons.pixels import CLIP_MEAN, CLIP_STD, Pixels, check_square, read_processor_config

USUAL_SIDE = 384
USUAL_COUNTS = {"min_patches": 1, "max_patches": 12}
MOST_TILES = 1000
"""Of one picture; an image processor that asks for more is damaged."""


@dataclass(frozen=True)
class Tiles:
    """Square tiles of `side` pixels, at most `most`, and how they are normalised."""

    side: int
    most: int
    grids: Sequence[tuple[int, int]]
    """Columns and rows that the tiles may stand in, those of fewer tiles first."""
    pixels: Pixels

    @classmethod
    def read(cls, folder: Path, side: int) -> "Tiles":
        """By the image processor's settings. Raises `UnsupportedCheckpoint` or `BrokenConfig`."""
        settings = read_processor_config(folder)
        check_square(settings, side, USUAL_SIDE)
        counts = {name: settings.get(name, usual) for name, usual in USUAL_COUNTS.items()}
        positive(counts, "preprocessor_config", *counts)
        least, most = counts.values()
        if most > MOST_TILES:
            raise BrokenConfig(f"preprocessor_config.max_patches {most} is more than {MOST_TILES}")
        grids = [
            (c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= least
        ]
        grids.sort(key=lambda grid: grid[0] * grid[1])
        pixels = Pixels.read(settings, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD)
        return cls(side, most, grids if most > 1 else [], pixels)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The columns and rows of tiles for a picture of this width and height."""
        return nearest_grid(size, self.grids, self.side)

    def count(self, size: tuple[int, int]) -> int:
        """How many tiles such a picture becomes: if more than one, the whole of it is another."""
        columns, rows = self.grid(size)
        return columns * rows + (columns * rows > 1)

    def cut(self, image: Image.Image) -> np.ndarray:
        """The tiles line by line, then the whole picture as one: uint8 [count, side, side, 3]."""
        columns, rows = self.grid(image.size)
        side = self.side
        tiles = square_tiles(self.pixels.resized(image, columns * side, rows * side), side)
        if len(tiles) == 1:
            return tiles
        return np.concatenate([tiles, self.pixels.resized(image, side, side)[None]])
