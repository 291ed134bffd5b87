"""Samples for measuring, one skill at a time, of what training never saw.

New are all compositions, sizes and places, the words, whole font families, the handwritten digits
and one style of background, and larger pictures; the classes are the trained ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image

from scripts.demo_model import questions
from scripts.demo_model.assets import Assets
from scripts.demo_model.drawing import draw
from scripts.demo_model.questions import Asker, Turn
from scripts.demo_model.scenes import Mix, SceneMaker


@dataclass
class Sample:
    image: Image.Image
    turns: list[Turn]  # the last answer counts; those before it are given


def _mix(**changes: object) -> Mix:
    return Mix(**{"held_out": True, "sides": (160, 400), "layouts": {}, **changes})  # type: ignore[arg-type]


_OBJECTS = {"single": 1.0, "across": 1.0, "down": 1.0, "corners": 1.0, "row": 0.5}
_PAIRS = {"across": 1.0, "down": 1.0}

# Each skill: the scenes, the questions, and how many turns a sample has.
SKILLS: dict[str, tuple[Mix, tuple[Asker, ...], int]] = {
    "name": (_mix(layouts={"single": 1.0}, shapes=0.0), (questions.name_it,), 1),
    "position": (_mix(layouts=_PAIRS, repeats=0.0), (questions.at_place, questions.beside), 1),
    "where": (_mix(layouts=_OBJECTS, repeats=0.0), (questions.where_is,), 1),
    "count": (_mix(layouts=_OBJECTS, repeats=0.5), (questions.how_many,), 1),
    "colour": (_mix(layouts=_OBJECTS, shapes=1.0, repeats=0.0), (questions.which_colour,), 1),
    "word": (
        _mix(layouts={"text": 1.0}, numbers=0.0, longest_word=6),
        (questions.what_is_written,),
        1,
    ),
    "number": (_mix(layouts={"text": 1.0}, numbers=1.0), (questions.what_is_written,), 1),
    "digit": (_mix(layouts={"digits": 1.0}), (questions.which_digits,), 1),
    "yes_no": (
        _mix(layouts=_OBJECTS),
        (questions.is_there, questions.is_coloured, questions.is_beside),
        1,
    ),
    "describe": (_mix(layouts=_OBJECTS), (questions.describe,), 1),
    "follow_up": (
        _mix(layouts=_OBJECTS),
        (
            questions.name_it,
            questions.at_place,
            questions.where_is,
            questions.which_colour,
            questions.is_there,
        ),
        2,
    ),
}


def held_out(skill: str, count: int, seed: int, assets: Assets) -> Iterator[Sample]:
    """`count` samples of a skill, the same ones for the same seed.

    Yes and no come equally often. A skill "swap" gives the samples of "name", all with one
    question: two neighbours show different things, so that the answers must differ.
    """
    mix, askers, turns = SKILLS["name" if skill == "swap" else skill]
    maker = SceneMaker(assets)
    rng = Random(f"held out {skill} {seed}")
    wanted = "yes"
    made, before = 0, ""
    while made < count:
        scene = maker.make(rng, mix)
        # A digit is one digit.
        if skill == "digit" and len(scene.things) > 1:
            continue
        asked = rng.choice(askers)(rng, scene, maker)
        if len(asked) < turns:
            continue
        asked = asked[:turns]
        if skill == "yes_no":
            if asked[-1].answer != wanted:
                continue
            wanted = "no" if wanted == "yes" else "yes"
        if skill == "swap":
            if asked[-1].answer == before:
                continue
            before = asked[-1].answer
            asked = [Turn("what is this?", before)]
        made += 1
        yield Sample(draw(scene, assets), asked)


def normalised(answer: str) -> str:
    """For comparing: lower case, without punctuation and articles."""
    kept = "".join(c if c.isalnum() or c.isspace() else " " for c in answer.lower())
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))
