"""What an answer has to be, as a value: how it is written, and what it refuses."""

import copy
import json
import pickle
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest

from engine import GenerationOptions, OptionError, Schema
from engine.schema import MOST_SOURCE

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_forms() -> None:
    whole = Schema.json(OBJECT)
    assert json.loads(whole.source) == OBJECT
    assert Schema.json(json.dumps(OBJECT)) == whole
    assert Schema.json(MappingProxyType(OBJECT)) == whole
    assert Schema.json(OrderedDict(OBJECT)) == whole
    assert Schema.json(True).source == "{}"
    assert Schema.regex("a+") != Schema.grammar("a+")
    assert Schema.choices(["a", 'b"']).source == 'start: CHOICE\nCHOICE: "a" | "b\\""'


def test_options_take_them_as_they_come() -> None:
    for given, wanted in (
        (OBJECT, Schema.json(OBJECT)),
        (["yes", "no"], Schema.choices(["yes", "no"])),
        (("yes",), Schema.choices(["yes"])),
        (Schema.regex("a"), Schema.regex("a")),
    ):
        options = GenerationOptions(schema=given)  # type: ignore[arg-type]
        assert options.schema == wanted
        for again in (copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
            assert again == options
            assert hash(again) == hash(options)


@pytest.mark.parametrize(
    ("given", "saying"),
    [
        (5, "schema must be"),
        ("text", "schema must be"),
        (b"bytes", "schema must be"),
        ([], "at least one text"),
        (["a", ""], "at least one character"),
        (["a", 5], "at least one character"),
        (["\ud800"], "half a character"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": b"a"}, "cannot be written as JSON"),
        ({"const": "\ud800"}, "half a character"),
    ],
)
def test_what_is_none(given: Any, saying: str) -> None:
    with pytest.raises(OptionError, match=saying):
        GenerationOptions(schema=given)


def test_what_is_none_by_itself() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    for make, given, saying in (
        (Schema.json, "{", "no JSON"),
        (Schema.json, "[1]", "is an object, not list"),
        (Schema.json, False, "allows nothing"),
        (Schema.json, 5, "is an object, not int"),
        (Schema.json, deep, "cannot be written as JSON"),
        (Schema.regex, "", "at least one character"),
        (Schema.regex, 5, "at least one character"),
        (Schema.grammar, None, "at least one character"),
        (Schema.regex, "a" * (MOST_SOURCE + 1), "1,048,577 characters"),
        (Schema.choices, "abc", "a list of texts"),
        (Schema.choices, None, "a list of"),
    ):
        with pytest.raises(OptionError, match=saying):
            make(given)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="json, regex or grammar, not xml"):
        Schema("xml", "a")  # type: ignore[arg-type]
