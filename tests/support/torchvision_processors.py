"""transformers' image processors that have no Pillow form, where there is no torchvision.

What they take of it is little: resampling, which is PyTorch's own, and the division by a std. Where
torchvision is installed, it is used.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import interpolate
from transformers import image_processing_backends, image_utils
from transformers.utils import import_utils

BACKENDS = image_processing_backends.__name__


class InterpolationMode(Enum):
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def resize(
    image: torch.Tensor, size: Any, interpolation: InterpolationMode | int, antialias: bool = True
) -> torch.Tensor:
    """As torchvision resizes bytes on a CPU that it knows a fast way for.

    It knows the modes by Pillow's numbers, too.
    """
    if isinstance(interpolation, int):
        interpolation = InterpolationMode[Image.Resampling(interpolation).name]
    if image.shape[-2:] == tuple(size):
        return image
    batch = image.reshape(-1, *image.shape[-3:])
    mode = interpolation.value
    made = interpolate(batch, size=size, mode=mode, align_corners=False, antialias=antialias)
    return made.reshape(*image.shape[:-2], *made.shape[-2:])


def normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:
    columns = (torch.as_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (image - next(columns)) / next(columns)


def image_processor(family: str, name: str) -> Any:
    """The class `name` of `transformers.models.FAMILY.image_processing_FAMILY`."""
    path = f"transformers.models.{family}.image_processing_{family}"
    if importlib.util.find_spec("torchvision"):
        return getattr(importlib.import_module(path), name)
    with _standing_in() as patch:
        _anew(BACKENDS, patch)
        return getattr(_anew(path, patch), name)


@contextmanager
def _standing_in() -> Iterator[pytest.MonkeyPatch]:
    functional = ModuleType("torchvision.transforms.v2.functional")
    vars(functional).update(resize=resize, normalize=normalize, InterpolationMode=InterpolationMode)
    above = [ModuleType(n) for n in ("torchvision", "torchvision.transforms")]
    v2 = ModuleType("torchvision.transforms.v2")
    vars(v2).update(functional=functional)
    modes = {Image.Resampling[mode.name]: mode for mode in InterpolationMode}
    with pytest.MonkeyPatch.context() as patch:
        for module in (*above, v2, functional):
            patch.setitem(sys.modules, module.__name__, module)
        for name, values in (
            ("pil_torch_interpolation_mapping", modes),
            ("torch_pil_interpolation_mapping", {mode: pil for pil, mode in modes.items()}),
        ):
            patch.setattr(image_utils, name, values, raising=False)
        patch.setattr(import_utils, "requires", lambda **_: lambda thing: thing)
        patch.setattr(transformers.utils, "is_torchvision_available", lambda: True)
        yield patch


def _anew(path: str, patch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.find_spec(path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, path, module)
    spec.loader.exec_module(module)
    return module
