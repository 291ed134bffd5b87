"""Real photographs, for tests of preprocessing."""

import skimage.data
from PIL import Image


def photographs() -> list[Image.Image]:
    names = ("astronaut", "chelsea", "coffee", "rocket")
    return [Image.fromarray(getattr(skimage.data, name)()) for name in names]
