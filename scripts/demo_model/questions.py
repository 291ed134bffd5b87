"""Questions about a scene, with their answers: short, lower-case, one form for each fact.

Each function gives one or two turns about what its scene shows, or none where the question would
have no clear answer.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from scripts.demo_model.colours import COLOURS
from scripts.demo_model.scenes import SHAPES, Scene, SceneMaker, Thing


class Turn(NamedTuple):
    """`spelled`: the part of the answer that the model writes letter by letter.

    So it can read words that it was never trained to read: every letter is a token that it knows.
    """

    question: str
    answer: str
    spelled: str = ""


Turns = list[Turn]
Asker = Callable[[Random, Scene, SceneMaker], Turns]

_SIDES = {
    "left": ("on the left", "left of the {}", "to the left of the {}"),
    "right": ("on the right", "right of the {}", "to the right of the {}"),
    "top": ("at the top", "above the {}", "over the {}"),
    "bottom": ("at the bottom", "below the {}", "under the {}"),
}
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    if name.endswith("man"):
        return name[:-2] + "en"
    if name.endswith(("s", "x", "ch", "sh")):
        return name if name.endswith("s") else name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def where(place: str) -> str:
    if place == "middle":
        return "in the middle"
    return _SIDES[place][0] if place in _SIDES else f"at the {place}"


# --- what it is -------------------------------------------------------------------------------


def name_it(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if scene.layout != "single":
        return []
    thing = scene.things[0]
    asked = ("what is this?", "what is it?", "what is in the picture?", "what do you see?")
    turns = [Turn(rng.choice((*asked, "what is this?", "name this.", "what's this?")), thing.name)]
    follow = rng.random()
    if follow < 0.25:
        true = rng.random() < 0.5
        other = thing if true else maker.object(rng, False, near=thing)
        turns.append(Turn(f"is it {with_article(other.name)}?", "yes" if true else "no"))
    elif thing.kind == "shape" and follow < 0.6:
        turns.append(Turn(rng.choice(("what colour is it?", "and what color?")), thing.colour))
    elif thing.kind == "shape" and follow < 0.8:
        turns.append(Turn(rng.choice(("what shape is it?", "which shape?")), thing.shape))
    return turns


def describe(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    question = rng.choice(
        (
            "describe the picture.",
            "describe this image.",
            "what is in this picture?",
            "describe it.",
        )
    )
    if scene.layout == "text":
        text = scene.things[0]
        kind = "number" if text.name.isdigit() else "word"
        return [Turn(question, f'the {kind} "{text.name}"', text.name)]
    if scene.layout == "digits":
        number = "".join(thing.name for thing in scene.things)
        return [Turn(question, f'the number "{number}"', number)]
    if scene.layout == "caption":
        text, thing = scene.things
        kind = "number" if text.name.isdigit() else "word"
        return [Turn(question, f'{thing.name} and the {kind} "{text.name}"', text.name)]
    names = [thing.name for thing in scene.things]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return [Turn(question, listed)]


# --- where it is ------------------------------------------------------------------------------


def at_place(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    """What is on the left? And on the right?"""
    if scene.layout in ("single", "text", "caption", "digits"):
        return []
    places = rng.sample(scene.places, 2)
    first, second = (scene.at(place) for place in places)
    turns = [Turn(f"what is {where(places[0])}?", first.name)]
    if rng.random() < 0.5:
        turns.append(Turn(f"and {where(places[1])}?", second.name))
    return turns


def beside(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    """What is left of the dog?"""
    pairs = []
    for place, thing in zip(scene.places, scene.things, strict=True):
        if scene.layout not in ("across", "down", "row", "corners") or _count(scene, thing) > 1:
            continue
        for side in _SIDES:
            if scene.layout == "across" and side in ("top", "bottom"):
                continue
            if scene.layout in ("down",) and side in ("left", "right"):
                continue
            if scene.layout == "row" and (side in ("top", "bottom") or place != "middle"):
                continue
            other = scene.at(_neighbour(place, side))
            if other is not None:
                pairs += [(thing, side, other.name)] * 5
            elif scene.layout in ("across", "down"):
                pairs.append((thing, side, "nothing"))
    if not pairs:
        return []
    thing, side, answer = rng.choice(pairs)
    relation = rng.choice(_SIDES[side][1:]).format(thing.name)
    return [Turn(f"what is {relation}?", answer)]


def _neighbour(place: str, side: str) -> str:
    """The place beside `place` on that side, of any layout; a name of no place if none is."""
    if place == "middle":
        return side
    if " " not in place:
        return side if _OPPOSITE.get(place) == side else "none"
    level, column = place.split()
    if side in ("left", "right"):
        return f"{level} {side}" if column != side else "none"
    return f"{side} {column}" if level != side else "none"


def where_is(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if scene.layout not in ("across", "down", "row", "corners"):
        return []
    spots = [
        (thing, place)
        for thing, place in zip(scene.things, scene.places, strict=True)
        if _count(scene, thing) == 1
    ]
    rng.shuffle(spots)
    turns = [Turn(f"where is the {thing.name}?", where(place)) for thing, place in spots[:1]]
    if len(spots) > 1 and rng.random() < 0.3:
        turns.append(Turn(f"and the {spots[1][0].name}?", where(spots[1][1])))
    return turns


def is_beside(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if scene.layout not in ("across", "down") or _count(scene, scene.things[0]) > 1:
        return []
    first, second = rng.sample(range(2), 2)
    true = rng.random() < 0.5
    side = scene.places[first] if true else scene.places[second]
    relation = _SIDES[side][1].format(scene.things[second].name)
    return [Turn(f"is the {scene.things[first].name} {relation}?", "yes" if true else "no")]


# --- how many, which colour, whether ----------------------------------------------------------


def _count(scene: Scene, thing: Thing) -> int:
    return sum(other.name == thing.name for other in scene.things)


def _shapes(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if thing.shape]


def _lone(shapes: list[Thing]) -> list[Thing]:
    """Those that "the circle" means clearly: no other one has the same shape."""
    return [t for t in shapes if sum(other.shape == t.shape for other in shapes) == 1]


def how_many(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if scene.layout in ("text", "caption", "digits"):
        return []
    asked = rng.choice(("how many things are there?", "how many objects do you see?", "how many?"))
    turns = [Turn(asked, str(len(scene.things)))]
    repeated = len({thing.name for thing in scene.things}) < len(scene.things)
    if rng.random() < (0.8 if repeated else 0.2):
        thing = rng.choice(scene.things)
        kind = Turn(f"how many {plural(thing.name)} are there?", str(_count(scene, thing)))
        turns = [kind] if rng.random() < 0.6 else [*turns, kind]
    elif (shapes := _shapes(scene)) and rng.random() < 0.4:
        shape, colour = rng.choice(shapes).shape, rng.choice(shapes).colour
        number = sum(thing.shape == shape for thing in shapes)
        turns = [Turn(f"how many {plural(shape)} are there?", str(number))]
        if len(shapes) == len(scene.things) and rng.random() < 0.5:
            number = sum(thing.colour == colour for thing in shapes)
            turns = [Turn(f"how many {colour} things are there?", str(number))]
    return turns


def which_colour(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    lone = _lone(_shapes(scene))
    if not lone:
        return []
    rng.shuffle(lone)
    spelling = rng.choice(("colour", "color"))
    turns = [Turn(f"what {spelling} is the {lone[0].shape}?", lone[0].colour)]
    if len(lone) > 1 and rng.random() < 0.4:
        turns.append(Turn(f"and the {lone[1].shape}?", lone[1].colour))
    return turns


def is_coloured(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    shapes = _shapes(scene)
    lone = _lone(shapes)
    if not lone:
        return []
    thing, true = rng.choice(lone), rng.random() < 0.5
    others = list({s.colour for s in shapes} - {thing.colour}) or list(COLOURS)
    colour = thing.colour if true else rng.choice(sorted(set(others) - {thing.colour}))
    return [Turn(f"is the {thing.shape} {colour}?", "yes" if true else "no")]


def background_colour(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if not scene.background["name"]:
        return []
    spelling = rng.choice(("colour", "color"))
    return [Turn(f"what {spelling} is the background?", scene.background["name"])]


def is_there(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    """Half of them true; half of the others about something that looks alike."""
    if not scene.objects:
        return []

    def ask(form: str) -> Turn:
        thing = rng.choice(scene.objects)
        true = rng.random() < 0.5
        shown = {other.name for other in scene.objects}
        while not true and thing.name in shown:
            near = rng.choice(scene.objects) if rng.random() < 0.5 else None
            thing = maker.object(rng, rng.random() < 0.3, near=near)
        return Turn(form.format(with_article(thing.name)), "yes" if true else "no")

    turns = [ask(rng.choice(("is there {}?", "is there {} in the picture?", "do you see {}?")))]
    if rng.random() < 0.25:
        turns.append(ask("and {}?"))
    return turns


def has_shape(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    shapes = _shapes(scene)
    if not shapes or len(shapes) < len(scene.things):
        return []
    true = rng.random() < 0.5
    shown = {thing.shape for thing in shapes}
    shape = rng.choice(sorted(shown if true else set(SHAPES) - shown))
    return [Turn(f"is there {with_article(shape)}?", "yes" if true else "no")]


# --- what is written --------------------------------------------------------------------------


def what_is_written(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if not scene.texts:
        return []
    text = scene.texts[0]
    asked = ["what is written?", "what does it say?", "read the text.", "what is written here?"]
    asked += ["what number is this?"] if text.name.isdigit() else ["what word is this?"]
    return [Turn(rng.choice(asked), text.name, text.name)]


def which_digits(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if scene.layout != "digits":
        return []
    asked = ["what number is this?", "what is written?", "which number is written?"]
    if len(scene.things) == 1:
        asked += ["what digit is this?", "which digit is this?"]
    return [Turn(rng.choice(asked), "".join(thing.name for thing in scene.things))]


def captioned(rng: Random, scene: Scene, maker: SceneMaker) -> Turns:
    if scene.layout != "caption":
        return []
    text, thing = scene.things
    side = "under" if scene.places[0] == "bottom" else "over"
    if rng.random() < 0.5:
        return [Turn(f"what is {side} the {thing.name}?", text.name, text.name)]
    return [Turn("what is in the picture besides the text?", thing.name)]


ASKERS: dict[Asker, float] = {
    name_it: 3.0,
    describe: 1.0,
    at_place: 1.3,
    beside: 1.3,
    where_is: 1.0,
    is_beside: 0.6,
    how_many: 1.0,
    which_colour: 1.2,
    is_coloured: 0.5,
    background_colour: 0.4,
    is_there: 1.3,
    has_shape: 0.3,
    what_is_written: 3.0,
    which_digits: 3.0,
    captioned: 0.8,
}


def ask_all(rng: Random, scene: Scene, maker: SceneMaker) -> list[Turns]:
    """Every question that the scene allows, in random order, the important ones sooner."""
    order = sorted(ASKERS, key=lambda asker: rng.random() ** (1 / ASKERS[asker]), reverse=True)
    groups = [asker(rng, scene, maker) for asker in order]
    return [[_varied(rng, turn) for turn in group] for group in groups if group]


def _varied(rng: Random, turn: Turn) -> Turn:
    """As people type: with a capital or without, sometimes without the mark at the end."""
    question = turn.question
    if rng.random() < 0.4:
        question = question[0].upper() + question[1:]
    if rng.random() < 0.12:
        question = question[:-1]
    return turn._replace(question=question)
