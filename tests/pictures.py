"""Pictures for preprocessing tests: real photographs, and noise of odd sizes."""

import numpy as np
import skimage.data
from PIL import Image

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
ODD_SIZES = ((1, 50), (60, 1), (190, 1), (3, 570), (31, 33), (1300, 900))


def picture_of(which: str | tuple[int, int], seed: int) -> Image.Image:
    """A photograph by its name in scikit-image, or noise of this width and height."""
    if isinstance(which, str):
        return Image.fromarray(getattr(skimage.data, which)())
    width, height = which
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def photographs() -> list[Image.Image]:
    return [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
