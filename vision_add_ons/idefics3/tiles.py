"""How a picture is cut into square tiles.

Semantics: transformers' `Idefics3ImageProcessorPil`. Where torchvision 0.27 or later is installed,
transformers resizes by that, which rounds otherwise: by 1 or 2 of 255, in one value of a hundred.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.picture_sizes import square_tiles

LONGEST_OF_ALL = 4096
"""Pixels of the longer edge that no setting goes beyond."""
USUAL = {"size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}}
"""Of an image processor whose file does not tell."""


@dataclass(frozen=True)
class Tiling:
    """The sizes of tiles and of what is cut into them."""

    side: int
    """Of a tile, in pixels."""
    longest: int
    """The longer edge that a picture is brought to, whether larger or smaller."""
    splitting: bool
    """Without it there is one tile, which shows the whole picture."""

    @classmethod
    def read(cls, saved: dict[str, Any], side: int) -> "Tiling":
        """The saved settings, for a tower that takes squares of `side` pixels.

        Raises `UnsupportedCheckpoint` or `BrokenConfig`.
        """
        where = "preprocessor_config"
        whole = USUAL | {name: value for name, value in saved.items() if value is not None}
        size = whole["size"]
        if not isinstance(size, dict) or [n for n, v in size.items() if v] != ["longest_edge"]:
            raise UnsupportedCheckpoint(
                f"{where}.size {size!r} is not supported: it must give longest_edge alone"
            )
        positive(size, f"{where}.size", "longest_edge")
        if whole["max_image_size"] != {"longest_edge": side}:
            raise UnsupportedCheckpoint(
                f"{where}.json gives tiles of max_image_size {whole['max_image_size']!r}, but the "
                f"tower's image_size is {side}"
            )
        splitting = whole.get("do_image_splitting", True)
        check_fields({"do_image_splitting": splitting}, where, do_image_splitting=(True, False))
        return cls(side, size["longest_edge"], splitting)

    @property
    def most(self) -> int:
        """Rows, or columns, of tiles at most."""
        if not self.splitting:
            return 1
        # The shorter edge is rounded up to an even number, beyond a longer one that is odd.
        return math.ceil(min(self.longest + self.longest % 2, LONGEST_OF_ALL) / self.side)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The width and height that a picture of this size is first brought to."""
        width, height = _in_proportion(*size, self.longest)
        if size[0] >= size[1]:
            height += height % 2
        else:
            width += width % 2
        width, height = max(width, 1), max(height, 1)
        if max(width, height) > LONGEST_OF_ALL:
            width, height = _in_proportion(width, height, LONGEST_OF_ALL)
        return max(width, 1), max(height, 1)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tiles for a picture of this width and height."""
        if not self.splitting:
            return 1, 1
        resized = self.resized(size)
        longer = math.ceil(max(resized) / self.side) * self.side
        width, height = _in_proportion(*resized, longer)
        return math.ceil(height / self.side), math.ceil(width / self.side)

    def count(self, size: tuple[int, int]) -> int:
        """How many tiles that are, with the one of the whole picture behind several."""
        tiles = math.prod(self.grid(size))
        return tiles + 1 if tiles > 1 else 1

    def cut(self, image: Image.Image, resample: Image.Resampling) -> np.ndarray:
        """The tiles, row by row, and the whole picture: uint8 [count, side, side, 3]."""
        side, (rows, columns) = self.side, self.grid(image.size)
        image = image.resize(self.resized(image.size), resample)
        image = image.resize((columns * side, rows * side), resample)
        tiles = square_tiles(np.asarray(image), side)
        if len(tiles) == 1:
            return tiles
        whole = np.asarray(image.resize((side, side), resample))
        return np.concatenate([tiles, whole[None]])


def _in_proportion(width: int, height: int, longer: int) -> tuple[int, int]:
    """Width and height whose longer edge is `longer`, the other cut down to whole pixels."""
    ratio = width / height
    return (longer, int(longer / ratio)) if width >= height else (int(longer * ratio), longer)
