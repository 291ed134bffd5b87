"""From a picture of any size to the views of it that the tower reads.

Semantics: transformers' `Lfm2VlImageProcessor`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig, ImageError, UnsupportedCheckpoint
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.picture_sizes import Size, between, nearest_grid, square_tiles
from vision_add_ons.pixels import HALF_MEAN, HALF_STD, read_processor_config
from vision_add_ons.torch_pixels import TorchPixels

DEFAULTS = {
    "downsample_factor": 2,
    "do_image_splitting": True,
    "do_pad": True,
    "encoder_patch_size": 16,
    "max_image_tokens": 256,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_image_tokens": 64,
    "min_tiles": 2,
    "tile_size": 512,
    "use_thumbnail": True,
}
LARGEST = {"max_tiles": 100, "max_image_tokens": 2**16, "tile_size": 2**13}
"""Beyond these a file is damaged."""


@dataclass(frozen=True)
class Layout:
    """What a picture becomes: `lines` x `columns` tiles, or none, and the whole of it, or not."""

    lines: int
    columns: int
    whole: Size | None
    """Width and height in pixels of a view of all of it, which follows the tiles."""


@dataclass(frozen=True)
class Views:
    """How pictures are cut.

    A picture keeps about its shape: its sides are rounded to whole rows, and brought between
    `min_rows` and `max_rows` in all. One that is larger by `tolerance` becomes square tiles of
    `tile` pixels a side, and the whole of it once more if `thumbnail` says so.
    """

    patch: int
    cell: int
    """Pixels along one side of what becomes a row of embeddings."""
    tile: int
    tiles: Size | None
    """The fewest and the most tiles; None where nothing is cut."""
    min_rows: int
    max_rows: int
    tolerance: float
    thumbnail: bool
    room: int
    """Pixels of a view, at most."""
    pixels: TorchPixels

    FIRST: ClassVar[str] = "Siglip2ImageProcessor"
    """The image processor of the first checkpoints, whose tiling the whole processor's file has."""

    @classmethod
    def read(cls, folder: Path, patch: int, factor: int) -> "Views":
        """The folder's saved settings, or the processor's defaults.

        Raises `UnsupportedCheckpoint` or `BrokenConfig`, naming the field.
        """
        saved = read_processor_config(folder)
        if saved.get("image_processor_type") == cls.FIRST:
            saved = {**saved, **read_json_if_there(folder / "processor_config.json")}
        cut = {**DEFAULTS, **{name: saved[name] for name in DEFAULTS if name in saved}}
        where = "image processor"
        check_fields(cut, where, encoder_patch_size=(patch,), downsample_factor=(factor,))
        flags = dict.fromkeys(("do_image_splitting", "use_thumbnail"), (True, False))
        check_fields(cut, where, do_pad=(True,), **flags)
        names = ("min_tiles", "max_tiles", "min_image_tokens", "max_image_tokens", "tile_size")
        positive(cut, where, *names)
        for name, limit in LARGEST.items():
            if cut[name] > limit:
                raise BrokenConfig(f"{where}.{name} {cut[name]} is more than {limit}")
        for low, high in (("min_tiles", "max_tiles"), ("min_image_tokens", "max_image_tokens")):
            if cut[low] > cut[high]:
                raise BrokenConfig(f"{where}.{low} {cut[low]} is more than {high} {cut[high]}")
        tolerance = cut["max_pixels_tolerance"]
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
            raise BrokenConfig(f"{where}.max_pixels_tolerance must be a number, not {tolerance!r}")
        tiles = (cut["min_tiles"], cut["max_tiles"])
        splits = cut["do_image_splitting"] and tiles != (1, 1)
        if splits and (tiles[0] < 2 or cut["tile_size"] % (patch * factor)):
            # The reference's processor then writes another number of tokens than there are rows.
            name, wanted = (
                ("min_tiles", "2 or more")
                if tiles[0] < 2
                else ("tile_size", f"a multiple of {patch * factor}")
            )
            raise UnsupportedCheckpoint(f"{where}.{name} must be {wanted}, not {cut[name]}")
        # Whatever this says, pictures are resized.
        pixels = TorchPixels.read(
            {**saved, "do_resize": True}, Image.Resampling.BILINEAR, HALF_MEAN, HALF_STD
        )
        pixels.check()
        return cls(
            patch=patch,
            cell=patch * factor,
            tile=cut["tile_size"],
            tiles=tiles if splits else None,
            min_rows=cut["min_image_tokens"],
            max_rows=cut["max_image_tokens"],
            tolerance=tolerance,
            thumbnail=cut["use_thumbnail"],
            room=max(
                cut["max_image_tokens"] * (patch * factor) ** 2,
                cut["tile_size"] ** 2 * cut["do_image_splitting"],
            ),
            pixels=pixels,
        )

    def layout(self, size: Size) -> Layout:
        """What a picture of this width and height becomes.

        Raises `ImageError` for one so thin that the view of the whole has more patches than the
        family's processor has room for: it fails there.
        """
        lines = columns = 0
        area = math.prod(max(self.patch, self._rounded(side)) for side in size)
        if self.tiles and area > self.max_rows * self.cell**2 * self.tolerance:
            columns, lines = nearest_grid(size, shapes(*self.tiles), self.tile)
        if lines and not self.thumbnail:
            return Layout(lines, columns, None)
        whole = self.resized(size)
        if math.prod(whole) > self.room:
            raise ImageError(
                f"a picture of {size[0]}x{size[1]} pixels is too thin: as a whole it would become "
                f"{whole[0]}x{whole[1]}, more than {self.room} pixels; crop it first"
            )
        return Layout(lines, columns, whole)

    def resized(self, size: Size) -> Size:
        """The width and height of the view of a whole picture of this width and height."""
        width, height = (max(self.cell, self._rounded(side)) for side in size)
        least, most = (rows * self.cell**2 for rows in (self.min_rows, self.max_rows))
        return between(size, (width, height), self.cell, least, most)

    def grids(self, size: Size) -> list[Size]:
        """How many patches stand below and beside each other in each view: (lines, columns)."""
        layout = self.layout(size)
        views = [(self.tile, self.tile)] * (layout.lines * layout.columns)
        views += [layout.whole] if layout.whole else []
        return [(height // self.patch, width // self.patch) for width, height in views]

    def cut(self, image: Image.Image) -> Iterator[np.ndarray]:
        """The views of an RGB picture, tiles line by line: uint8 [height, width, 3] each."""
        layout, tile = self.layout(image.size), self.tile
        if layout.lines:
            sides = layout.columns * tile, layout.lines * tile
            yield from square_tiles(self.pixels.resized(image, *sides), tile)
        if layout.whole:
            yield self.pixels.resized(image, *layout.whole)

    def values(self, view: np.ndarray) -> mx.array:
        """What the tower reads: float32 [lines, columns, values of a patch].

        A patch's values are in the order height, width, channel.
        """
        lines, columns = (side // self.patch for side in view.shape[:2])
        cut = view.reshape(lines, self.patch, columns, self.patch, 3).swapaxes(1, 2)
        return self.pixels.normalised(cut).reshape(lines, columns, -1)

    def _rounded(self, side: int) -> int:
        return round(side / self.cell) * self.cell


@lru_cache
def shapes(fewest: int, most: int) -> list[Size]:
    """Shapes of so many tiles, (columns, lines), the fewest tiles first.

    Which of as many comes first decides where two are as near: it is the order of Python's sets of
    these pairs, as the reference has it, which puts them in by the longest side.
    """
    pairs = {
        (columns, lines)
        for longest in range(fewest, most + 1)
        for columns in range(1, longest + 1)
        for lines in range(1, longest + 1)
        if fewest <= columns * lines <= most
    }
    return sorted(pairs, key=math.prod)
