"""Generation options as values: what may be done with them, and what they may be."""

import copy
import json
import math
import pickle
from dataclasses import asdict, fields, replace
from typing import Any, get_type_hints

import pytest

from engine import GenerationOptions, OptionError
from engine.options import BOUNDS

SOME = GenerationOptions(temperature=0.5, stop="x", logit_bias={3: 1.5, 5: -2.0})


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda options: pickle.loads(pickle.dumps(options)),
        lambda options: GenerationOptions(**asdict(options)),
        lambda options: GenerationOptions(
            **json.loads(json.dumps(asdict(options)), object_hook=_ids)
        ),
        lambda options: replace(replace(options, seed=5), seed=None),
    ],
)
def test_copies_are_equal_and_valid(again: Any) -> None:
    other = again(SOME)
    assert other == SOME
    assert hash(other) == hash(SOME)
    assert replace(other, top_k=5) != SOME
    with pytest.raises(TypeError, match="replace"):
        other.logit_bias[3] = math.nan


def _ids(read: dict[str, Any]) -> dict[Any, Any]:
    return {int(key) if key.isdigit() else key: value for key, value in read.items()}


def test_biases_stay_what_they_were() -> None:
    given = {3: 1.5}
    options = GenerationOptions(logit_bias=given)
    given[3] = 9.0
    assert options.logit_bias == {3: 1.5}
    biases: Any = options.logit_bias
    for change in (
        lambda: biases.update({1: 1.0}),
        lambda: biases.pop(3),
        lambda: biases.setdefault(4, 1.0),
        lambda: biases.__ior__({1: 1.0}),
        lambda: biases.__delitem__(3),
        biases.clear,
        biases.popitem,
    ):
        with pytest.raises(TypeError, match="do not change"):
            change()
    assert options.logit_bias == {3: 1.5}


def test_every_number_has_bounds() -> None:
    kinds = get_type_hints(GenerationOptions)
    numbers = {f.name for f in fields(GenerationOptions)} - {
        "stop",
        "logprobs",
        "schema",
        "thinking",
    }
    assert numbers == set(BOUNDS), kinds


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_taken_and_what_is_beyond_names_them(name: str) -> None:
    def with_value(value: float) -> GenerationOptions:
        given: Any = {3: value} if name == "logit_bias" else value
        return GenerationOptions(**{name: given})

    low, high = BOUNDS[name]
    for value in (low, high):
        with_value(value)
    below, above = (
        (low - 1, high + 1)
        if isinstance(low, int)
        else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))
    )
    for value, bound in ((below, low), (above, high)):
        with pytest.raises(OptionError, match=f"{name} must be at (least|most) {bound}"):
            with_value(value)
