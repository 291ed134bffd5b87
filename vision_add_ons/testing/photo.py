"""A picture as an engine hands it to an add-on, without an engine."""

import hashlib

import numpy as np
from PIL import Image


class Photo:
    """A `vision_add_ons.base.Picture`: smooth fields of colour with some noise, by a seed.

    `image` is the same as a PIL image in mode RGB. Equal pixels have equal digests.
    """

    def __init__(self, width: int, height: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR), np.int16)
        noise = rng.integers(-30, 31, smooth.shape)
        self._take(Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)))

    @classmethod
    def of(cls, image: Image.Image) -> "Photo":
        """An RGB picture that is there already."""
        photo = cls.__new__(cls)
        photo._take(image)
        return photo

    def _take(self, image: Image.Image) -> None:
        self.image = image
        self.size = image.size
        content = hashlib.sha256(b"%d %d\n" % image.size + image.tobytes())
        self.digest = content.hexdigest()

    def pixels(self) -> Image.Image:
        """The picture, not to be changed."""
        return self.image

    def release(self) -> None:
        """Nothing: there is nothing to decode the pixels from again."""
