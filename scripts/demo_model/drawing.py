"""A scene becomes a picture."""

import itertools
import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from scripts.demo_model.assets import Assets
from scripts.demo_model.scenes import Scene, Thing

_BANK = 160  # pixels of the masks that shapes are drawn from


def draw(scene: Scene, assets: Assets) -> Image.Image:
    """The picture, RGB, of the scene's size; boxes of texts become those of what was drawn."""
    image = _background(scene)
    for thing in scene.things:
        if thing.kind == "drawing":
            side = max(8, round(thing.width))
            sprite = assets.sprite(thing.index)
            if thing.angle:
                sprite = sprite.rotate(thing.angle, Image.Resampling.BILINEAR)
            sprite = sprite.resize((side, side), Image.Resampling.BILINEAR)
            image.paste(sprite, _corner(thing, sprite), sprite)
            continue
        mask = _mask(thing, assets)
        image.paste(thing.rgb, _corner(thing, mask), mask)
    return image


def _corner(thing: Thing, drawn: Image.Image) -> tuple[int, int]:
    return round(thing.x - drawn.width / 2), round(thing.y - drawn.height / 2)


def _mask(thing: Thing, assets: Assets) -> Image.Image:
    side = max(8, round(thing.width))
    if thing.kind == "text":
        return _text_mask(thing, assets)
    mask = _shape(thing.shape) if thing.kind == "shape" else assets.digit_masks[thing.index]
    if thing.angle:
        mask = mask.rotate(thing.angle, Image.Resampling.BILINEAR)
    return mask.resize((side, side), Image.Resampling.BICUBIC)


def _text_mask(thing: Thing, assets: Assets) -> Image.Image:
    """The text as large as fits the thing's box, which shrinks to what is drawn."""
    probe = assets.font(thing.font, 40)
    left, top, right, bottom = probe.getbbox(thing.shown)
    scale = min(thing.width / max(1, right - left), thing.height / max(1, bottom - top))
    font = assets.font(thing.font, max(8, int(40 * scale)))
    left, top, right, bottom = font.getbbox(thing.shown)
    thing.width, thing.height = right - left, bottom - top
    mask = Image.new("L", (int(thing.width) + 4, int(thing.height) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), thing.shown, fill=255, font=font)
    if thing.angle:
        mask = mask.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)
    return mask


def letter_places(thing: Thing, assets: Assets) -> list[tuple[float, float]]:
    """Centres, in pixels, of a drawn text's letters."""
    probe = assets.font(thing.font, 40)
    ends = [probe.getlength(thing.shown[:end]) for end in range(len(thing.shown) + 1)]
    turn = math.radians(thing.angle)
    places = []
    for start, end in itertools.pairwise(ends):
        along = ((start + end) / 2 / max(1.0, ends[-1]) - 0.5) * thing.width
        places.append((thing.x + along * math.cos(turn), thing.y - along * math.sin(turn)))
    return places


def _background(scene: Scene) -> Image.Image:
    size, facts = (scene.width, scene.height), scene.background
    style, one, two = facts["style"], facts["rgb"], facts["rgb2"]
    if style == "plain":
        return Image.new("RGB", size, one)
    rng = np.random.default_rng(facts["seed"])
    first, second = np.array(one, np.float32), np.array(two, np.float32)
    if style == "gradient":
        weights = rng.random((2, 2))
        method = Image.Resampling.BILINEAR
    elif style == "noise":
        weights = rng.random((rng.integers(4, 30), rng.integers(4, 30)))
        method = Image.Resampling.BICUBIC
    elif style == "checks":
        count = int(rng.integers(2, 9))
        weights = np.indices((count, count)).sum(0) % 2
        method = Image.Resampling.NEAREST
    else:
        down, across = np.mgrid[0 : size[1], 0 : size[0]]
        turn, period = rng.uniform(0, math.pi), rng.uniform(12, 50)
        waves = np.sin((down * math.sin(turn) + across * math.cos(turn)) * 2 * math.pi / period)
        weights = waves > 0
        method = Image.Resampling.NEAREST
    colours = first + (second - first) * weights[..., None].astype(np.float32)
    small = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    return small.resize(size, method)


@lru_cache
def _shape(name: str) -> Image.Image:
    """White on black, drawn four times as large and shrunk."""
    size = 4 * _BANK
    mask = Image.new("L", (size, size))
    pen, middle, radius = ImageDraw.Draw(mask), size / 2, 0.48 * size
    corners = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
    if name in ("circle", "ring"):
        pen.ellipse((0.02 * size, 0.02 * size, 0.98 * size, 0.98 * size), fill=255)
        if name == "ring":
            pen.ellipse((0.24 * size, 0.24 * size, 0.76 * size, 0.76 * size), fill=0)
    elif name == "square":
        pen.rectangle((0.1 * size, 0.1 * size, 0.9 * size, 0.9 * size), fill=255)
    elif name == "diamond":
        half = 0.34 * size
        pen.polygon(
            [(middle, 0), (middle + half, middle), (middle, size), (middle - half, middle)],
            fill=255,
        )
    elif name == "cross":
        pen.rectangle((0.36 * size, 0.04 * size, 0.64 * size, 0.96 * size), fill=255)
        pen.rectangle((0.04 * size, 0.36 * size, 0.96 * size, 0.64 * size), fill=255)
    elif name == "heart":
        turns = np.linspace(0, 2 * math.pi, 200)
        across = 16 * np.sin(turns) ** 3
        up = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
        step = size / 36
        pen.polygon(
            [
                (middle + step * x, middle - step * (y + 2.5))
                for x, y in zip(across, up, strict=True)
            ],
            fill=255,
        )
    elif name == "star":
        pen.polygon(_around(10, middle, [radius, 0.42 * radius]), fill=255)
    else:
        pen.polygon(_around(corners[name], middle, [radius]), fill=255)
    return mask.resize((_BANK, _BANK), Image.Resampling.LANCZOS)


def _around(count: int, middle: float, radii: list[float]) -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / count - math.pi / 2 for i in range(count)]
    return [
        (middle + radii[i % len(radii)] * math.cos(t), middle + radii[i % len(radii)] * math.sin(t))
        for i, t in enumerate(turns)
    ]
