"""Pictures whose sizes are drawn: a rule for sizes must hold for more than a few of them."""

import random

from PIL import Image

from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import ImageError
from vision_add_ons.testing.kit import Case

EDGES = (6, 640)
"""Pixels of the shorter edges and of the longer ones."""
LONGEST = 50
"""How many times as long as wide a picture is drawn at most."""
TAKEN = 10
"""How many times as long as wide an add-on must take a picture."""


def drawn_pictures(case: Case, eyes: VisionAddOn, count: int) -> list[Image.Image]:
    """Noise of `count` sizes, without those of long pictures that the add-on refuses.

    Raises AssertionError if it refuses another.
    """
    found = []
    for width, height in drawn_sizes(case.random, count):
        photo, refusal = case.photo(width, height), None
        try:
            eyes.row_count(photo)
            found.append(photo.image)
        except ImageError as error:
            refusal = str(error)
        assert refusal is None or max(photo.size) > TAKEN * min(photo.size), (
            f"a picture of {width}x{height} pixels is refused ({refusal}): only those that are "
            f"over {TAKEN} times as long as wide may be"
        )
    return found


def drawn_sizes(chance: random.Random, count: int) -> list[tuple[int, int]]:
    """Widths and heights: of three, two have odd edges, and the third is a long picture."""
    low, high = EDGES
    sizes = []
    for i in range(count):
        # As many of each order of magnitude.
        long, other = (round(low * (high / low) ** chance.random()) for _ in range(2))
        if i % 3 == 2:
            other = max(1, round(long / chance.uniform(TAKEN, LONGEST)))
        else:
            long, other = long | 1, other | 1
        sizes.append((long, other) if chance.random() < 0.5 else (other, long))
    return sizes
