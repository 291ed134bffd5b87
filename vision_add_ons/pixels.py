"""Steps of preprocessing that families share. Semantics: transformers' Pillow image processors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.json_files import read_json_if_there

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF_MEAN = HALF_STD = (0.5, 0.5, 0.5)
AS_THEY_ARE = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
"""Settings by which normalising changes nothing."""
USUAL_SIDE = 224
"""Of the square that the processors of CLIP, SigLIP and Gemma 3 make if their file tells none."""


def read_processor_config(folder: Path) -> dict[str, Any]:
    """The image processor's saved settings; empty where the folder has none.

    transformers 4 wrote them to preprocessor_config.json, version 5 writes them to
    processor_config.json under `image_processor`. Raises `BrokenConfig`.
    """
    saved = read_json_if_there(folder / "preprocessor_config.json")
    nested = read_json_if_there(folder / "processor_config.json").get("image_processor")
    return {**saved, **(nested if isinstance(nested, dict) else {})}


def scaled_alone(saved: dict[str, Any]) -> dict[str, Any]:
    """The settings of an image processor that may be told not to normalise, for `Pixels.read`."""
    if saved.get("do_normalize") is not False:
        return saved
    return {**saved, "do_normalize": True, **AS_THEY_ARE}


@dataclass(frozen=True)
class Pixels:
    """How a picture is resampled and normalised, whatever the size it is brought to."""

    resample: Image.Resampling
    factor: float
    mean: Sequence[float]
    std: Sequence[float]

    @classmethod
    def read(
        cls,
        saved: dict[str, Any],
        resample: Image.Resampling,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> Self:
        """The saved settings, or these defaults. Raises `UnsupportedCheckpoint`, `BrokenConfig`."""
        for field in ("do_resize", "do_rescale", "do_normalize"):
            if saved.get(field, True) is not True:
                raise UnsupportedCheckpoint(
                    f"the image processor's {field} must be true, not {saved[field]!r}"
                )
        try:
            values = cls(
                _resampling(_given(saved, "resample", resample)),
                _number(_given(saved, "rescale_factor", 1 / 255)),
                tuple(map(_number, _given(saved, "image_mean", mean))),
                tuple(map(_number, _given(saved, "image_std", std))),
            )
        except (TypeError, ValueError) as error:
            raise BrokenConfig(
                "the image processor's resample, rescale_factor, image_mean or image_std makes no "
                f"sense ({error})"
            ) from error
        numbers = (values.factor, *values.mean, *values.std)
        sane = len(numbers) == 7 and all(0 <= number <= 255 for number in numbers)
        if not sane or min(values.factor, *values.std) < 1e-6:
            raise BrokenConfig(
                "the image processor's rescale_factor, image_mean and image_std must be numbers "
                "from 0 to 255, three of each of the latter, all but the mean above 0"
            )
        return values

    def __call__(self, image: Image.Image, width: int, height: int) -> mx.array:
        """Resize an RGB picture and normalise it: float32 [height, width, 3]."""
        return self.normalised(self.resized(image, width, height))

    def resized(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        """The picture in this size: uint8 [height, width, 3]."""
        if image.size != (width, height):
            image = image.resize((width, height), self.resample)
        return np.asarray(image)

    def normalised(self, pixels: np.ndarray) -> mx.array:
        """uint8 [..., 3] becomes what the tower reads: float32."""
        scaled = (pixels.astype(np.float64) * self.factor).astype(np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return mx.array((scaled - mean) / std)


def _given(saved: dict[str, Any], name: str, default: Any) -> Any:
    value = saved.get(name)
    return default if value is None else value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _resampling(value: Any) -> Image.Resampling:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return Image.Resampling(value)


def check_square(saved: dict[str, Any], side: int, usual: int = USUAL_SIDE) -> None:
    """Raise `UnsupportedCheckpoint` if the size of the processor is not the tower's square.

    Settings that say nothing of it mean `usual`; where none are saved, it is the tower's.
    """
    size = _given(saved, "size", usual if saved else side)
    if size not in (side, {"height": side, "width": side}):
        raise UnsupportedCheckpoint(
            f"the image processor's size is {size!r}, but the tower takes {side} x {side} pixels"
        )
