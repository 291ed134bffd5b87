"""From an RGB picture to the normalised pixels of each tower, as Prismatic's transforms do it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image, ImageOps

from vision_add_ons.errors import BrokenConfig, ImageError, UnsupportedCheckpoint
from vision_add_ons.json_files import read_json_if_there

Triple = tuple[float, float, float]

DINO_MEAN: Triple = (0.485, 0.456, 0.406)
DINO_STD: Triple = (0.229, 0.224, 0.225)
SIGLIP_MEAN: Triple = (0.5, 0.5, 0.5)
SIGLIP_STD: Triple = (0.5, 0.5, 0.5)

STRATEGIES = ("resize-naive", "resize-crop", "letterbox")
PIL_BICUBIC = 3  # how saved `tvf_resize_params` write it
MAX_PIXELS = 200_000_000


def normalize_dino(image: mx.array) -> mx.array:
    """Pixels in [0, 1] to ImageNet statistics; float [B, H, W, 3] or [H, W, 3], shape kept."""
    return _normalize(image, DINO_MEAN, DINO_STD)


def normalize_siglip(image: mx.array) -> mx.array:
    """Pixels in [0, 1] to [-1, 1]; float [B, H, W, 3] or [H, W, 3], shape kept."""
    return _normalize(image, SIGLIP_MEAN, SIGLIP_STD)


def _normalize(image: mx.array, mean: Triple, std: Triple) -> mx.array:
    return (mx.array(image) - mx.array(mean)) / mx.array(std)


@dataclass(frozen=True)
class PixelRecipe:
    """How one tower wants its pixels. Semantics: Prismatic's image transforms on Pillow images.

    `fill` is the colour, in 0..255, of the border that letterbox adds.
    """

    size: int
    strategy: str
    mean: Triple
    std: Triple
    fill: tuple[int, int, int]

    def __call__(self, image: Image.Image) -> mx.array:
        """An RGB picture of any size as normalised pixels, float32 [size, size, 3].

        Raises `ImageError` as `check` does.
        """
        self.check(image.size)
        if self.strategy == "letterbox":
            across, down = ((max(image.size) - side) // 2 for side in image.size)
            image = ImageOps.expand(image, (across, down, across, down), fill=self.fill)
        image = image.resize(self._resized(image.size), Image.Resampling.BICUBIC)
        left, top = (round((side - self.size) / 2) for side in image.size)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = mx.array(np.asarray(image)).astype(mx.float32) / 255
        return _normalize(pixels, self.mean, self.std)

    def check(self, size: tuple[int, int]) -> None:
        """Refuse (`ImageError`) a picture so elongated that it would grow beyond reason."""
        longer = max(size)
        width, height = (longer, longer) if self.strategy == "letterbox" else self._resized(size)
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"a picture of {size[0]}x{size[1]} pixels is too elongated for {self.strategy!r} "
                "preprocessing; crop it first"
            )

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """To the square at once, or (the default of torchvision's Resize) by the shorter side.

        A letterboxed picture takes the second way too: its border is equally wide on both sides,
        so an odd difference leaves it one pixel short of a square.
        """
        if self.strategy == "resize-naive":
            return self.size, self.size
        width, height = size
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size


def read_recipes(folder: Path, config: dict[str, Any], size: int) -> list[PixelRecipe]:
    """The recipes of the DINO and the SigLIP tower.

    What the folder's preprocessor_config.json says wins over config.json and over the published
    numbers: saved processors carry the means that the model saw in training, rounded or not.
    Raises `BrokenConfig`, or `UnsupportedCheckpoint` naming the field.
    """
    path = folder / "preprocessor_config.json"
    saved = read_json_if_there(path)
    try:
        return _recipes(saved, config, size)
    except (TypeError, ValueError, AttributeError) as error:
        raise BrokenConfig(f"{path} has a value of the wrong form ({error})") from error


def _recipes(saved: dict[str, Any], config: dict[str, Any], size: int) -> list[PixelRecipe]:
    named = (saved.get("image_resize_strategy"), config.get("image_resize_strategy"))
    strategy = next(filter(None, named), "resize-naive")
    served: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("image_resize_strategy", strategy, STRATEGIES)
    ]
    for name in saved.get("interpolations") or ():
        served.append(("interpolations", name, ("bicubic",)))
    for resize in saved.get("tvf_resize_params") or ():
        served.append(("tvf_resize_params", resize.get("interpolation"), (PIL_BICUBIC, None)))
    for shape in saved.get("input_sizes") or ():
        served.append(("input_sizes", tuple(shape), ((3, size, size),)))
    for field, value, known in served:
        if value not in known:
            raise UnsupportedCheckpoint(f"{field}: {value!r} is not served; known is {known}")
    means = saved.get("means") or (DINO_MEAN, SIGLIP_MEAN)
    stds = saved.get("stds") or (DINO_STD, SIGLIP_STD)
    recipes = []
    for mean, std in zip(map(_triple, means), map(_triple, stds), strict=True):
        # The original code fills with each tower's own mean; the processor saved with a converted
        # checkpoint has one fill for both.
        if min(std) <= 0:
            raise ValueError(f"stds must be above 0, not {std}")
        red, green, blue = _triple(saved.get("tvf_letterbox_fill") or [255 * m for m in mean])
        recipes.append(PixelRecipe(size, strategy, mean, std, (int(red), int(green), int(blue))))
    if len(recipes) != 2:
        raise ValueError(f"means and stds are for {len(recipes)} towers")
    return recipes


def _triple(values: Iterable[float]) -> Triple:
    red, green, blue = map(float, values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError(f"{values} are no colours")
    return red, green, blue
