"""Colours that have a name which nobody would dispute."""

import colorsys
from random import Random

RGB = tuple[int, int, int]

# Hue in degrees, saturation and value in percent: from and to. Between the ranges lie colours
# that people name differently.
_RANGES = {
    "red": (-10, 6, 78, 100, 70, 100),
    "orange": (24, 34, 88, 100, 92, 100),
    "yellow": (50, 58, 75, 100, 92, 100),
    "green": (100, 142, 50, 100, 38, 85),
    "blue": (210, 240, 65, 100, 60, 100),
    "purple": (270, 288, 50, 90, 45, 80),
    "pink": (325, 345, 30, 55, 95, 100),
    "brown": (18, 28, 60, 80, 33, 48),
    "black": (0, 360, 0, 20, 0, 10),
    "white": (0, 360, 0, 3, 96, 100),
    "gray": (0, 360, 0, 6, 42, 66),
}
COLOURS = tuple(_RANGES)


def random_colour(rng: Random, name: str) -> RGB:
    h0, h1, s0, s1, v0, v1 = _RANGES[name]
    hue = rng.uniform(h0, h1) % 360 / 360
    return _rgb(hue, rng.uniform(s0, s1) / 100, rng.uniform(v0, v1) / 100)


def random_rgb(rng: Random) -> RGB:
    """Any colour, pale and dark ones more often than an even choice would give."""
    return _rgb(rng.random(), rng.random() ** 1.5, rng.random() ** 0.6)


def distance(one: RGB, other: RGB) -> float:
    """Between two colours, 0 to about 760, with lightness counted most."""
    red, green, blue = (float(a) - float(b) for a, b in zip(one, other, strict=True))
    return (2 * red * red + 4 * green * green + 3 * blue * blue) ** 0.5


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
