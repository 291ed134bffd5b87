"""How a picture is brought to a size, and cut into slices that all have one shape.

Semantics: transformers' `MiniCPMV4_6ImageProcessorPil`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.picture_sizes import Size
from vision_add_ons.pixels import HALF_MEAN, HALF_STD, Pixels, read_processor_config

WHERE = "preprocessor_config"
USUAL: dict[str, Any] = {
    "max_slice_nums": 9,
    "scale_resolution": 448,
    "patch_size": 14,
    "slice_mode": True,
    "use_image_id": True,
    "downsample_mode": "16x",
}
"""Of an image processor whose file does not tell."""


@dataclass(frozen=True)
class Layout:
    """What a picture becomes; grids are lines and columns of rows, sides width and height."""

    whole: Size
    """The sides of the view of the whole picture, in pixels."""
    lines: int
    """Of slices; 0 where the whole picture is all."""
    columns: int
    slice: Size
    """The sides of a slice, in pixels."""

    def views(self) -> list[Size]:
        """The sides of each view, the whole picture's first."""
        return [self.whole, *[self.slice] * (self.lines * self.columns)]


@dataclass(frozen=True)
class Slicing:
    """The settings of an image processor."""

    cell: int
    """Pixels along a side of the square that becomes a row."""
    scale: int
    """Views have about as many pixels as a square of this side."""
    most: int
    """Slices at most; 1 where none are cut."""
    numbered: bool
    """Whether the prompt tells which picture in it each is."""
    pixels: Pixels

    @classmethod
    def read(cls, folder: Path, patch: int, mode: str) -> "Slicing":
        """Of a checkpoint whose tower takes patches of `patch` pixels, in this `downsample_mode`.

        Raises `UnsupportedCheckpoint` or `BrokenConfig`.
        """
        saved = read_processor_config(folder)
        told = USUAL | {name: saved[name] for name in USUAL if saved.get(name) is not None}
        positive(told, WHERE, "max_slice_nums", "scale_resolution")
        check_fields(told, WHERE, patch_size=(patch,), downsample_mode=(mode,))
        for flag in ("slice_mode", "use_image_id"):
            # As it stands: 0 and 1 are equal to flags.
            check_fields({flag: repr(told[flag])}, WHERE, **{flag: ("True", "False")})
        return cls(
            cell=patch * (2 if mode == "4x" else 4),
            scale=told["scale_resolution"],
            most=told["max_slice_nums"] if told["slice_mode"] else 1,
            numbered=told["use_image_id"],
            pixels=Pixels.read(saved, Image.Resampling.BICUBIC, HALF_MEAN, HALF_STD),
        )

    def layout(self, size: Size) -> Layout:
        """What a picture of this width and height becomes."""
        width, height = size
        lines, columns = self._grid(width, height)
        whole = self._resized(width, height, grow=not lines)
        if not lines:
            return Layout(whole, 0, 0, (0, 0))
        # To whole pixels of each slice first, which then is brought to a size as a picture is.
        sides = _whole(width, columns) / columns, _whole(height, lines) / lines
        return Layout(whole, lines, columns, self._resized(*sides, grow=True))

    def cut(self, image: Image.Image) -> Iterator[np.ndarray]:
        """The views of an RGB picture: the whole, and slices line by line: uint8 [h, w, 3]."""
        layout = self.layout(image.size)
        yield self.pixels.resized(image, *layout.whole)
        if layout.lines:
            width, height = layout.slice
            whole = self.pixels.resized(image, layout.columns * width, layout.lines * height)
            cut = whole.reshape(layout.lines, height, layout.columns, width, 3).swapaxes(1, 2)
            yield from cut.reshape(-1, height, width, 3)

    def rows(self, sides: Size) -> Size:
        """Lines and columns of the rows of a view with these sides."""
        width, height = sides
        return height // self.cell, width // self.cell

    def _grid(self, width: int, height: int) -> Size:
        """Lines and columns of slices; (0, 0) for none."""
        shape = math.log(width / height)
        wanted = min(math.ceil(width * height / self.scale**2), self.most)
        if wanted <= 1:
            return 0, 0
        best, least_off = (1, 1), math.inf
        for count in (wanted - 1, wanted, wanted + 1):
            if count == 1 or count > self.most:
                continue
            for lines in (n for n in range(1, count + 1) if count % n == 0):
                off = abs(shape - math.log(count // lines / lines))
                # Of equally near ones that with more lines.
                if off < least_off or (off == least_off and lines > best[0]):
                    best, least_off = (lines, count // lines), off
        return best

    def _resized(self, width: float, height: float, grow: bool) -> Size:
        if grow or width * height > self.scale**2:
            shape = width / height
            height = int(self.scale / math.sqrt(shape))
            width = int(height * shape)
        return _whole(width, self.cell), _whole(height, self.cell)


def _whole(length: float, unit: int) -> int:
    """The length in whole units, and at least one."""
    return max(round(length / unit) * unit, unit)
