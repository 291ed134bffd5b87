"""Tools as applications describe them: read in OpenAI's form, or refused by name."""

from typing import Any

import pytest
from support.call_forms import TOOLS

from engine import OptionError, Request, Tool
from engine.tools.tool import MOST_SOURCE, MOST_TOOLS, ToolChoice, read_choice, read_tools

MESSAGES = [{"role": "user", "content": "Hi"}]


def test_both_forms() -> None:
    function = {"name": "f", "description": "Does.", "parameters": {"properties": {"a": True}}}
    whole = {"type": "function", "function": {**function, "strict": None}}
    flat = {"type": "function", **function, "strict": True, "unheard": 5}
    assert Tool.of(whole) == Tool.of(function) == Tool("f", "Does.", function["parameters"])
    assert Tool.of(flat).strict
    made = Tool.of(whole)
    assert Tool.of(made) is made
    assert made.parameters == {"type": "object", "properties": {"a": True}}
    # Parsers look into the schema of each property.
    assert made.written["function"]["parameters"]["properties"] == {"a": {}}


def test_it_is_a_copy() -> None:
    parameters: dict[str, Any] = {"properties": {"a": {}}}
    tool = Tool("f", parameters=parameters)
    parameters["properties"]["b"] = {}
    assert list(tool.parameters["properties"]) == ["a"]


def nested(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels // 2):
        made = {"properties": {"a": made}}
    return made


DEEP, RATHER_DEEP = nested(10_000), nested(200)
REFUSED: dict[str, Any] = {
    "no dictionary": "f",
    "another type": {"type": "web_search"},
    "no name": {"description": "x"},
    "a name that is none": {"name": "a b"},
    "no text for a name": {"name": 5},
    "a long name": {"name": "a" * 129},
    "a number for a description": {"name": "f", "description": 5},
    "half a character": {"name": "f", "description": "\ud800"},
    "half a character within": {"name": "f", "parameters": {"properties": {"\ud800": {}}}},
    "a list of parameters": {"name": "f", "parameters": []},
    "parameters of an array": {"name": "f", "parameters": {"type": "array"}},
    "properties that are none": {"name": "f", "parameters": {"properties": []}},
    "a property that is none": {"name": "f", "parameters": {"properties": {"a": 5}}},
    "a text for what is required": {"name": "f", "parameters": {"required": "a"}},
    "no JSON": {"name": "f", "parameters": {"properties": {"a": {"const": b"x"}}}},
    "no number": {"name": "f", "parameters": {"properties": {"a": {"const": float("nan")}}}},
    "nested deep": {"name": "f", "parameters": DEEP},
    "nested too deep for a template": {"name": "f", "parameters": RATHER_DEEP},
    "strict as a text": {"name": "f", "strict": "yes"},
}


@pytest.mark.parametrize("tool", list(REFUSED.values()), ids=list(REFUSED))
def test_refused(tool: Any) -> None:
    with pytest.raises(OptionError) as refused:
        Request(MESSAGES, tools=[{"name": "fine"}, tool])
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 400
    if isinstance(tool, dict) and tool.get("name") == "f":
        assert " f" in str(refused.value)


def test_how_deep() -> None:
    text = {"const": "[{" * 500}
    assert Tool("f", "", {**nested(90), "$defs": {"a": text}}).parameters["properties"]


def test_how_many_and_how_large() -> None:
    assert len(read_tools([{"name": f"f{i}"} for i in range(MOST_TOOLS)])) == MOST_TOOLS
    with pytest.raises(OptionError, match=str(MOST_TOOLS)):
        read_tools([{"name": f"f{i}"} for i in range(MOST_TOOLS + 1)])
    with pytest.raises(OptionError, match="characters"):
        read_tools([{"name": "f", "description": "x" * MOST_SOURCE}])
    with pytest.raises(OptionError, match="two are called f"):
        read_tools([{"name": "f"}, {"name": "f"}])
    for given in ("f", {"name": "f"}, 5):
        with pytest.raises(OptionError, match="list"):
            read_tools(given)
    assert read_tools(None) == read_tools([]) == ()


def test_choices() -> None:
    tools = read_tools(TOOLS)
    named = {"type": "function", "function": {"name": "clock"}}
    for given, mode, name in (
        (None, "auto", None),
        ("auto", "auto", None),
        ("none", "none", None),
        ("required", "required", None),
        ("clock", "required", "clock"),
        (named, "required", "clock"),
        ({"type": "function", "name": "clock"}, "required", "clock"),
        (ToolChoice("required", "clock"), "required", "clock"),
    ):
        assert read_choice(given, tools) == ToolChoice(mode, name)  # type: ignore[arg-type]
    for wrong in ("sing", {"type": "sing"}, {"function": 5}, {}, 5, ["clock"], {"name": "sing"}):
        with pytest.raises(OptionError, match="tool_choice"):
            read_choice(wrong, tools)
    assert read_choice("none", ()).mode == "none"
    for without in ("required", "clock", named, ToolChoice("required")):
        with pytest.raises(OptionError, match="no tools"):
            read_choice(without, ())
    with pytest.raises(OptionError, match="parallel_tool_calls"):
        Request(MESSAGES, parallel_tool_calls=1)  # type: ignore[arg-type]
