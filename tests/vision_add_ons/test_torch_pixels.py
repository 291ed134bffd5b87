"""Resampling against PyTorch's own, to the last bit."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image
from support.pictures import photographs
from torch.nn.functional import interpolate

from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.pixels import HALF_MEAN, HALF_STD
from vision_add_ons.torch_pixels import FILTERS, TorchPixels

SIZES = ((1, 1), (1, 50), (60, 1), (3, 570), (31, 33), (900, 700), (640, 480), (57, 1300))
TARGETS = ((32, 32), (64, 32), (32, 480), (1024, 512), (288, 224))


def by_torch(pixels: np.ndarray, width: int, height: int, mode: str) -> np.ndarray:
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous()
    made = interpolate(planes, size=(height, width), mode=mode, align_corners=False, antialias=True)
    return made[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("resample", FILTERS, ids=lambda kind: kind.name.lower())
def test_pixels_are_pytorchs(resample: Image.Resampling, seed: int) -> None:
    pixels = TorchPixels(resample, 1 / 255, HALF_MEAN, HALF_STD)
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*size[::-1], 3), np.uint8) for size in SIZES]
    # The steepest edges there are, beyond which cubic weights reach.
    images += [np.where(image > 127, 255, 0).astype(np.uint8) for image in images]
    for image in [*images, *map(np.asarray, photographs())]:
        for width, height in TARGETS:
            ours = pixels.resized(Image.fromarray(image), width, height)
            theirs = by_torch(image, width, height, resample.name.lower())
            assert np.array_equal(ours, theirs), (image.shape, width, height)


def test_a_picture_of_that_size_is_left_alone(seed: int) -> None:
    pixels = TorchPixels(Image.Resampling.BILINEAR, 1 / 255, HALF_MEAN, HALF_STD)
    image = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(pixels.resized(Image.fromarray(image), 30, 20), image)


def test_another_filter_is_refused() -> None:
    pixels = TorchPixels(Image.Resampling.LANCZOS, 1 / 255, HALF_MEAN, HALF_STD)
    with pytest.raises(UnsupportedCheckpoint, match=r"resample 1 .*only 2 or 3"):
        pixels.check()
