"""From a picture of any size to patches. Semantics: transformers' `Qwen2VLImageProcessorPil`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig, ImageError
from vision_add_ons.picture_sizes import Size, between
from vision_add_ons.pixels import CLIP_MEAN, CLIP_STD, Pixels, read_processor_config

HUGE = 200_000_000
MAX_RATIO = 200


@dataclass(frozen=True)
class Patches:
    """How pictures are cut. `merge` x `merge` patches, standing together, become one row.

    A picture keeps its shape: both sides are rounded to whole rows, and brought between
    `min_pixels` and `max_pixels` in all.
    """

    usual_limits: ClassVar = (56 * 56, 28 * 28 * 1280)
    """`min_pixels` and `max_pixels` where no settings are saved."""
    limits_beside_size: ClassVar = True
    """Whether the processor also heeds settings that are called so, rather than `size` alone."""

    patch: int
    merge: int
    frames: int
    """A still picture is a film that repeats it so often."""
    min_pixels: int
    max_pixels: int
    pixels: Pixels

    @classmethod
    def read(cls, folder: Path, vision: dict[str, Any]) -> Self:
        """The folder's saved settings, or the processor's defaults, for the tower of `vision`.

        Raises `UnsupportedCheckpoint` or `BrokenConfig`, naming the field.
        """
        saved = read_processor_config(folder)
        # What an absent field means differs between the two, so both are made explicit first.
        cut = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2} | saved
        check_fields(
            cut,
            "image processor",
            patch_size=(vision["patch_size"],),
            merge_size=(vision["spatial_merge_size"],),
            temporal_patch_size=(vision["temporal_patch_size"],),
        )
        size = saved.get("size")
        if size is None:
            size = dict(zip(("shortest_edge", "longest_edge"), cls.usual_limits, strict=True))
        if not isinstance(size, dict):
            raise BrokenConfig(f"the image processor's size must be an object, not {size!r}")
        limits: dict[str, Any] = {
            "min_pixels": size.get("shortest_edge"),
            "max_pixels": size.get("longest_edge"),
        }
        if cls.limits_beside_size:
            limits |= {name: saved[name] for name in limits if saved.get(name) is not None}
        positive(limits, "image processor", "min_pixels", "max_pixels")
        if not limits["min_pixels"] <= limits["max_pixels"] <= HUGE:
            raise BrokenConfig(
                f"the image processor's min_pixels {limits['min_pixels']} and max_pixels "
                f"{limits['max_pixels']} must be in this order, and at most {HUGE}"
            )
        return cls(
            patch=cut["patch_size"],
            merge=cut["merge_size"],
            frames=cut["temporal_patch_size"],
            pixels=Pixels.read(saved, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD),
            **limits,
        )

    @property
    def side(self) -> int:
        """Pixels along one side of what becomes a row."""
        return self.patch * self.merge

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most pixels that pictures are brought to."""
        return self.min_pixels, self.max_pixels

    def resized(self, size: Size) -> Size:
        """The width and height that a picture of this width and height is brought to.

        Raises `ImageError` for a picture more elongated than the family's processor takes.
        """
        if max(size) > MAX_RATIO * min(size):
            raise too_elongated(size)
        width, height = (round(side / self.side) * self.side for side in size)
        return between(size, (width, height), self.side, self.min_pixels, self.max_pixels)

    def grid(self, size: Size) -> Size:
        """How many embedding rows stand below and beside each other: (rows, columns)."""
        width, height = self.resized(size)
        return height // self.side, width // self.side

    def cut(self, image: Image.Image) -> np.ndarray:
        """The patches of an RGB picture: uint8 [rows * columns * merge^2, patch, patch, 3].

        Those of an embedding row follow each other.
        """
        rows, columns = self.grid(image.size)
        pixels = self.pixels.resized(image, *self.resized(image.size))
        cut = pixels.reshape(rows, self.merge, self.patch, columns, self.merge, self.patch, 3)
        return cut.transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, self.patch, self.patch, 3)

    def values(self, patches: np.ndarray) -> mx.array:
        """What the tower reads of some of them: float32 [patches, values of a patch].

        A patch's values are in the order channel, frame, height, width.
        """
        still = self.pixels.normalised(patches).transpose(0, 3, 1, 2)[:, :, None]
        return mx.repeat(still, self.frames, axis=2).reshape(len(patches), -1)


def too_elongated(size: Size) -> ImageError:
    """What is raised for a picture of this size."""
    return ImageError(
        f"a picture of {size[0]}x{size[1]} pixels is too elongated: one side may be {MAX_RATIO} "
        "times the other at most; crop it first"
    )
