"""Real photographs, as images and as files of them."""

import io
from functools import cache
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from engine.images import LoadedPicture


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Not to be changed."""
    names = ("astronaut", "chelsea", "coffee", "rocket")
    return tuple(Image.fromarray(getattr(skimage.data, name)()) for name in names)


PHOTOS = Path(skimage.data.__file__).parent


ASTRONAUT = PHOTOS / "astronaut.png"


def rgb(picture: LoadedPicture) -> np.ndarray:
    pixels = picture.pixels()
    assert pixels.mode == "RGB"
    assert pixels.size == picture.size
    return np.asarray(pixels)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(size: int = 48) -> Image.Image:
    return Image.open(ASTRONAUT).convert("RGB").crop((150, 50, 350, 250)).resize((size, size))
