"""What stands where in a picture, before anything is drawn."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from scripts.demo_model.assets import Assets
from scripts.demo_model.colours import COLOURS, RGB, distance, random_colour, random_rgb

SHAPES = (
    *("circle", "square", "triangle", "star", "heart"),
    *("diamond", "cross", "ring", "pentagon", "hexagon"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TRAINED_DIGITS = 1497  # of scikit-learn's 1,797; the others are held out


@dataclass
class Thing:
    """One object or text. Its box is in pixels: centre and full sides."""

    kind: str  # "drawing", "shape", "text" (printed) or "digit" (handwritten, one)
    name: str
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    index: int = 0
    colour: str = ""
    shape: str = ""
    rgb: RGB = (0, 0, 0)
    angle: float = 0.0
    font: str = ""
    shown: str = ""  # a text as it is printed; `name` is what it reads as


@dataclass
class Scene:
    """`layout`: single, across, down, row, corners, text, caption or digits.

    `places[i]` names the place of `things[i]`: "left", "top right", ...; empty in a single.
    """

    width: int
    height: int
    layout: str
    things: list[Thing]
    background: dict[str, Any]
    places: list[str] = field(default_factory=list)

    @property
    def objects(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind in ("drawing", "shape")]

    @property
    def texts(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind == "text"]

    def at(self, place: str) -> Thing | None:
        return self.things[self.places.index(place)] if place in self.places else None


@dataclass(frozen=True)
class Mix:
    """How scenes are chosen; shares need not add up to 1. `held_out`: what training never saw."""

    layouts: dict[str, float]
    shapes: float = 0.3  # share of things that are shapes
    repeats: float = 0.25  # share of scenes of several things in which one comes again
    numbers: float = 0.15
    random_strings: float = 0.3
    held_out: bool = False
    longest_word: int = 8
    sides: tuple[int, int] = (128, 320)  # pixels


TRAINING = Mix(
    {
        "single": 0.2,
        "across": 0.09,
        "down": 0.09,
        "row": 0.04,
        "corners": 0.15,
        "text": 0.36,
        "caption": 0.05,
        "digits": 0.08,
    }
)


class SceneMaker:
    def __init__(self, assets: Assets) -> None:
        self.assets = assets

    def make(self, rng: Random, mix: Mix) -> Scene:
        side = rng.randint(*mix.sides)
        stretch = rng.uniform(0.8, 1.25) if rng.random() < 0.5 else 1.0
        width, height = round(side * stretch**0.5), round(side / stretch**0.5)
        layout = rng.choices(list(mix.layouts), list(mix.layouts.values()))[0]
        scene = Scene(width, height, layout, [], {})
        if layout in ("text", "caption"):
            self._text_scene(rng, mix, scene)
        elif layout == "digits":
            self._digits(rng, mix, scene)
        else:
            self._object_scene(rng, mix, scene)
        scene.background = self._background(rng, mix, scene)
        for thing in scene.things:
            if thing.kind in ("text", "digit"):
                thing.rgb = _contrasting(rng, [scene.background["rgb"], scene.background["rgb2"]])
        return scene

    # --- objects --------------------------------------------------------------------------

    def _object_scene(self, rng: Random, mix: Mix, scene: Scene) -> None:
        width, height = scene.width, scene.height
        if scene.layout == "single":
            scene.places = [""]
            size = rng.uniform(0.32, 0.94) * min(width, height)
            boxes = [(_within(rng, size, 0, width), _within(rng, size, 0, height), size)]
        elif scene.layout == "across":
            scene.places = ["left", "right"]
            boxes = _two(rng, width, height)
        elif scene.layout == "down":
            scene.places = ["top", "bottom"]
            boxes = [(x, y, size) for y, x, size in _two(rng, height, width)]
        elif scene.layout == "row":
            scene.places = ["left", "middle", "right"]
            cell = width / 3
            sizes = [rng.uniform(0.8, 0.98) * min(cell, height) for _ in range(3)]
            level = _within(rng, max(sizes), 0, height)
            boxes = [
                (_within(rng, s, i * cell, (i + 1) * cell), _near(rng, level, s, height), s)
                for i, s in enumerate(sizes)
            ]
        else:
            corners = ["top left", "top right", "bottom left", "bottom right"]
            scene.places = sorted(
                rng.sample(corners, rng.choice((3, 3, 4, 4, 4))), key=corners.index
            )
            boxes = []
            for place in scene.places:
                left, top = "right" in place, "bottom" in place
                size = rng.uniform(0.6, 0.96) * min(width, height) / 2
                x = _within(rng, size, left * width / 2, (left + 1) * width / 2)
                boxes.append(
                    (x, _within(rng, size, top * height / 2, (top + 1) * height / 2), size)
                )
        for (x, y, size), thing in zip(boxes, self._kinds(rng, mix, len(boxes)), strict=True):
            thing.x, thing.y, thing.width, thing.height = x, y, size, size
            scene.things.append(thing)

    def _kinds(self, rng: Random, mix: Mix, count: int) -> list[Thing]:
        """Different things, unless one of them comes again."""
        only = rng.random()
        shares = mix.shapes if only < 0.5 else float(only < 0.5 + 0.5 * mix.shapes)
        kinds: list[Thing] = []
        while len(kinds) < count:
            thing = self.object(rng, rng.random() < shares)
            if all(thing.name != other.name for other in kinds):
                kinds.append(thing)
        if count > 1 and rng.random() < mix.repeats:
            again = rng.randint(1, count - 1)
            copies = [Thing(**vars(kinds[0])) for _ in range(again)]
            kinds = kinds[: count - again] + copies
            rng.shuffle(kinds)
        return kinds

    def object(self, rng: Random, is_shape: bool, near: Thing | None = None) -> Thing:
        """A random thing; with `near`, another one that resembles it."""
        angle = rng.uniform(-14, 14) if rng.random() < 0.4 else 0.0
        if near and near.kind == "shape":
            colour, shape = near.colour, near.shape
            if rng.random() < 0.5:
                colour = rng.choice([c for c in COLOURS if c != colour])
            else:
                shape = rng.choice([s for s in SHAPES if s != shape])
        elif near:
            index = int(rng.choice(self.assets.neighbours[near.index]))
            return Thing("drawing", self.assets.names[index], index=index, angle=angle)
        elif is_shape:
            colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        else:
            index = rng.randrange(len(self.assets.names))
            return Thing("drawing", self.assets.names[index], index=index, angle=angle)
        rgb = random_colour(rng, colour)
        name = f"{colour} {shape}"
        return Thing("shape", name, colour=colour, shape=shape, rgb=rgb, angle=angle)

    # --- texts ----------------------------------------------------------------------------

    def _text_scene(self, rng: Random, mix: Mix, scene: Scene) -> None:
        width, height = scene.width, scene.height
        text = self._text(rng, mix)
        share = rng.uniform(0.5, 0.96)
        # Letters must stay legible after shrinking to the towers' size.
        text.width = width * max(share, min(0.96, 0.1 * len(text.name)))
        text.angle = rng.uniform(-7, 7) if rng.random() < 0.3 else 0.0
        scene.things, scene.places = [text], [""]
        text.height = height * 0.45
        text.x = _within(rng, text.width, 0, width)
        text.y = _within(rng, text.height, 0, height)
        if scene.layout == "caption":
            text.angle, text.height = 0.0, height * 0.3
            thing = self.object(rng, rng.random() < mix.shapes)
            thing.width = thing.height = rng.uniform(0.4, 0.62) * min(width, height)
            text.y, thing.y = 0.83 * height, 0.35 * height
            scene.places = ["bottom", "top"]
            if rng.random() < 0.5:
                text.y, thing.y = height - text.y, height - thing.y
                scene.places = ["top", "bottom"]
            thing.x = _within(rng, thing.width, 0, width)
            scene.things.append(thing)

    def _text(self, rng: Random, mix: Mix) -> Thing:
        chance = rng.random()
        if chance < mix.numbers:
            name = str(rng.randrange(10 ** rng.randint(1, 5)))
        elif chance < mix.numbers + mix.random_strings and not mix.held_out:
            name = "".join(rng.choices(LETTERS[:26], k=rng.randint(2, 7)))
        else:
            words = self.assets.held_out_words if mix.held_out else self.assets.trained_words
            name = rng.choice(words)
            while len(name) > mix.longest_word:
                name = rng.choice(words)
        shown = rng.choices((name, name.upper(), name.capitalize()), (0.45, 0.35, 0.2))[0]
        return Thing("text", name, font=rng.choice(self.assets.fonts[mix.held_out]), shown=shown)

    def _digits(self, rng: Random, mix: Mix, scene: Scene) -> None:
        count = rng.choice((1, 1, 1, 2, 3))
        total = len(self.assets.digit_labels)
        size = rng.uniform(0.55, 0.95) * min(scene.width / count, scene.height * 0.9)
        left = _within(rng, size * count, 0, scene.width) - size * count / 2
        y = _within(rng, size, 0, scene.height)
        for place in range(count):
            first, end = (TRAINED_DIGITS, total) if mix.held_out else (0, TRAINED_DIGITS)
            index = rng.randrange(first, end)
            digit = Thing("digit", str(self.assets.digit_labels[index]), index=index)
            digit.x, digit.y, digit.width, digit.height = left + (place + 0.5) * size, y, size, size
            scene.things.append(digit)
        scene.places = [""] * count

    # --- background -----------------------------------------------------------------------

    def _background(self, rng: Random, mix: Mix, scene: Scene) -> dict[str, Any]:
        """A background that everything stands out from."""
        avoid = [
            tuple(self.assets.means[t.index]) if t.kind == "drawing" else t.rgb
            for t in scene.objects
        ]
        named = {t.colour for t in scene.objects}
        styles = ("plain", "plain", "plain", "gradient", "noise", "checks")
        style = rng.choice((*styles, "stripes", "stripes") if mix.held_out else styles)
        best: tuple[float, str, RGB] = (-1.0, "", (0, 0, 0))
        for _ in range(6):
            name = rng.choice([c for c in (*COLOURS, "white", "white") if c not in named])
            rgb = random_colour(rng, name)
            if style != "plain" and rng.random() < 0.5:
                name, rgb = "", random_rgb(rng)
            margin = min((distance(rgb, other) for other in avoid), default=999.0)
            best = max(best, (margin, name, rgb))
            if margin > 90:
                best = (margin, name, rgb)
                break
        _, name, rgb = best
        second = rgb
        if style != "plain":
            spread = rng.uniform(15, 70)
            second = tuple(min(255, max(0, round(c + rng.uniform(-spread, spread)))) for c in rgb)
            if min((distance(second, other) for other in avoid), default=999.0) < 60:
                second = rgb
        return {
            "style": style,
            "name": name if style == "plain" else "",
            "rgb": rgb,
            "rgb2": second,
            "seed": rng.randrange(1 << 30),
        }


def _within(rng: Random, size: float, start: float, end: float) -> float:
    """The centre of something of this size, anywhere between the two borders."""
    half = min(size, end - start) / 2
    return rng.uniform(start + half, end - half)


def _near(rng: Random, level: float, size: float, end: float) -> float:
    near = level + rng.uniform(-0.1, 0.1) * end
    return min(max(near, size / 2), end - size / 2)


def _two(rng: Random, along: int, across: int) -> list[tuple[float, float, float]]:
    middle = along * rng.uniform(0.42, 0.58)
    sizes = [rng.uniform(0.62, 0.98) * min(room, across) for room in (middle, along - middle)]
    level = _within(rng, max(sizes), 0, across)
    return [
        (_within(rng, sizes[0], 0, middle), _near(rng, level, sizes[0], across), sizes[0]),
        (_within(rng, sizes[1], middle, along), _near(rng, level, sizes[1], across), sizes[1]),
    ]


def _contrasting(rng: Random, others: list[RGB]) -> RGB:
    candidates = [random_rgb(rng) for _ in range(4)] + [(0, 0, 0), (255, 255, 255)]
    margins = [min(distance(c, other) for other in others) for c in candidates]
    good = [c for c, margin in zip(candidates, margins, strict=True) if margin > 150]
    return rng.choice(good) if good else candidates[margins.index(max(margins))]
