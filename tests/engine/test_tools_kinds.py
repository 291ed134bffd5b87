"""Parameters that may be of several types, as pydantic and TypeScript write them down."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support import recited
from support.call_forms import form_of, written

from engine import GenerationOptions, OptionError, Request, Tool, load
from engine.tools.kinds import ALL, kinds_of, reading_type, texts_of
from engine.tools.parsing import BY_TYPE
from engine.tools.tool import read_tools

NULL = {"type": "null"}
ROOT: dict[str, Any] = {
    "$defs": {
        "colour": {"enum": ["red", "blue"]},
        "level": {"enum": [1, 2], "type": "integer"},
        "it": {"$ref": "#/$defs/it"},
        "a/b": {"type": "boolean"},
    }
}
EACH: list[tuple[Any, set[str] | None, str]] = [
    ({"anyOf": [{"type": "string"}, NULL]}, {"string", "null"}, "string"),
    ({"anyOf": [{"type": "integer"}, NULL]}, {"integer", "null"}, "object"),
    ({"type": ["boolean", "null"]}, {"boolean", "null"}, "object"),
    ({"type": ["string", "null"]}, {"string", "null"}, "string"),
    ({"oneOf": [{"type": "string"}, {"type": "array"}]}, {"string", "array"}, "object"),
    ({"enum": ["a", None]}, {"string", "null"}, "string"),
    ({"enum": [1, True, 2.5]}, {"integer", "boolean", "number"}, "object"),
    ({"const": "a"}, {"string"}, "string"),
    ({"$ref": "#/$defs/colour"}, {"string"}, "string"),
    ({"$ref": "#/$defs/level"}, {"integer"}, "object"),
    ({"$ref": "#/$defs/a~1b"}, {"boolean"}, "object"),
    ({"allOf": [{"$ref": "#/$defs/colour"}], "description": "x"}, {"string"}, "string"),
    ({"type": "string", "enum": ["a"]}, {"string"}, "string"),
    ({"type": "integer"}, {"integer"}, "integer"),
    # Of which nothing is known, or too much would have to be looked at.
    ({}, None, "object"),
    (True, None, "object"),
    ({"$ref": "#/$defs/none"}, None, "object"),
    ({"$ref": "#/$defs/it"}, None, "object"),
    ({"$ref": "https://example.org/x"}, None, "object"),
]


@pytest.mark.parametrize(("schema", "kinds", "read"), EACH)
def test_kinds(schema: Any, kinds: set[str] | None, read: str) -> None:
    assert kinds_of(schema, ROOT) == (ALL if kinds is None else kinds)
    assert reading_type(schema, ROOT) == read


def test_texts() -> None:
    colours = ["red", "blue"]
    several = {"anyOf": [{"enum": ["a", "b"]}, {"const": "c"}, NULL]}
    assert texts_of(several, ROOT) == [*"abc", "null"]
    assert texts_of({"allOf": [{"$ref": "#/$defs/colour"}]}, ROOT) == colours
    assert texts_of({"anyOf": [{"$ref": "#/$defs/colour"}, NULL]}, ROOT) == [*colours, "null"]
    for open_ended in ({"anyOf": [{"enum": ["a"]}, {"type": "string"}]}, {"type": "string"}):
        assert texts_of(open_ended, ROOT) is None
    assert texts_of({"$ref": "#/$defs/it"}, ROOT) is None


SEVERAL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"anyOf": [{"type": "string", "enum": ["Ulm", "5"]}, NULL]},
        "days": {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 5}, NULL]},
        "snow": {"type": ["boolean", "null"]},
        "level": {"$ref": "#/$defs/level"},
        "colour": {"$ref": "#/$defs/colour"},
    },
    "required": ["city", "days", "snow", "level", "colour"],
    "additionalProperties": False,
    **ROOT,
}
STRING = {"type": "string", "maxLength": 3}
WANTED = {"city": "5", "days": 3, "snow": True, "level": 2, "colour": "red"}
TEXTS = {"city": "5", "days": "3", "snow": "true", "level": "2", "colour": "red"}
"""The same as models of these forms write it."""
FORMS = {
    "qwen3_coder": (
        "\n<function=f>\n{}</function>\n",
        "<parameter={0}>\n{1}\n</parameter>\n",
    ),
    "glm47": ("f\n{}", "<arg_key>{0}</arg_key>\n<arg_value>{1}</arg_value>\n"),
    "longcat": (
        "f\n{}",
        "<longcat_arg_key>{0}</longcat_arg_key>\n<longcat_arg_value>{1}</longcat_arg_value>\n",
    ),
}
FORMS["laguna"] = FORMS["glm47"]


def test_forms_are_all_there() -> None:
    assert set(FORMS) == BY_TYPE


@pytest.mark.parametrize("name", FORMS)
def test_they_are_read_as_what_they_are(name: str) -> None:
    whole, each = FORMS[name]
    body = whole.format("".join(each.format(*pair) for pair in TEXTS.items()))
    (call,), _ = form_of(name).parser.read(body, read_tools([{"name": "f", "parameters": SEVERAL}]))
    assert call.arguments == WANTED
    jsonschema.validate(call.arguments, SEVERAL)
    assert body in written(name, body)


def test_enforced_calls_are_read_as_they_are_written(tmp_path: Path) -> None:
    """Of a model that has no idea what to say."""
    folder = recited.save(tmp_path / "model", {}, parser="qwen3_coder", added=("<tool_call>",))
    with load(folder, parallel=4) as engine:
        under_way = []
        for seed in range(3):
            options = GenerationOptions(max_tokens=900, temperature=1.0, seed=seed)
            messages = [{"role": "user", "content": "Hi"}]
            tools = [{"name": "f", "parameters": SEVERAL}]
            request = Request(messages, options=options, tools=tools, tool_choice="f")
            under_way.append(engine.submit(request))
        for generation in under_way:
            end = generation.result()
            assert end.finish_reason == "tool_calls", end
            (call,) = end.tool_calls
            jsonschema.validate(dict(call.arguments), SEVERAL)
        tools = [Tool("f", "", {"properties": {"a": STRING}}, strict) for strict in (True, False)]
        with pytest.raises(OptionError, match="maxLength of f's 'a' cannot"):
            engine.chat(tools=tools[:1]).send("Hi", tool_choice="f")
        engine.chat(tools=tools[1:]).send("Hi", tool_choice="f").cancel()
