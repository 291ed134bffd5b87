"""What a request to /v1/responses may say, and what is refused by name."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from support.responses import body, refusal, respond
from support.serving import Running

from engine.prompts.messages import Message
from engine.server.errors import ApiError
from engine.server.responses.items import Item, opened, sealed
from engine.server.responses.reading import one_system, turns_of
from engine.server.responses.schemas import ResponseRequest
from engine.server.turns import Shown, Turn

READ: TypeAdapter[Any] = TypeAdapter(list[Item])
FUNCTION = {"type": "function", "name": "f"}


def user(content: Any, **more: Any) -> list[Any]:
    return [{"role": "user", "content": content, **more}]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": [5]}, "input[0]"),
    ({"input": [{}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "web_search_call", "id": "x", "status": "y"}]}, "input[0]"),
    ({"input": [{"type": ["message"], "role": "user", "content": "x"}]}, "input[0]"),
    ({"input": [{"type": "\ud800", "role": "user", "content": "x"}]}, "input[0]"),
    ({"input": [{"type": "x" * 5000}]}, "input[0]"),
    ({"input": user(None)}, "input[0].content"),
    ({"input": user("x", y=1)}, "input[0].y"),
    ({"input": user([{"type": "input_file", "file_id": "x"}])}, "input[0].content[0]"),
    ({"input": user([{"type": "input_text", "text": 5}])}, "input[0].content[0].text"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    (
        {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": {}}]},
        "input[0].arguments",
    ),
    ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
    (
        {"input": [{"type": "reasoning", "summary": [{"type": "x", "text": ""}]}]},
        "input[0].summary[0].type",
    ),
    (
        {"input": [{"type": "reasoning", "encrypted_content": "gAAAAA=="}, *user("x")]},
        "input[0].encrypted_content",
    ),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ({"input": [{"id": "\ud800"}]}, "input[0].id"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"instructions": 5}, "instructions"),
    ({"tools": [{"type": "file_search", "vector_store_ids": ["x"]}]}, "tools[0]"),
    ({"tools": [FUNCTION, {"type": "mcp", "server_url": "https://x"}]}, "tools[1]"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{**FUNCTION, "x": 1}]}, "tools[0].x"),
    ({"tools": [{**FUNCTION, "name": "a b"}]}, "tools"),
    ({"tools": [FUNCTION, FUNCTION]}, "tools"),
    ({"tools": [FUNCTION] * 300}, "tools"),
    (
        {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]},
        "tools[0].tools[0]",
    ),
    ({"tools": [{"type": "namespace", "name": "a.b", "tools": [FUNCTION]}]}, "tools[0].name"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": []}]}, "tools[0].tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    (
        {
            "tools": [FUNCTION],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "g"}],
            },
        },
        "tool_choice",
    ),
    ({"text": {"format": {"type": "grammar"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": 5}}}, "text.format.schema"),
    ({"text": {"x": 1}}, "text.x"),
    ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
    ({"reasoning": {"effort": "none"}, "enable_thinking": True}, "enable_thinking"),
    ({"include": ["everything"]}, "include[0]"),
    ({"metadata": {"a": 5}}, "metadata.a"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 2, "max_tokens": 2}, "max_tokens"),
    ({"previous_response_id": 5}, "previous_response_id"),
    ({"truncation": "auto"}, "truncation"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"store": "yes"}, "store"),
    ({"n": 2}, "n"),
    ({"messages": user("x")}, "messages"),
]


@pytest.mark.parametrize(("asked", "param"), REFUSED, ids=[p for _, p in REFUSED])
def test_refused_by_name(tiny_server: Running, asked: dict[str, Any], param: str) -> None:
    error = refusal(tiny_server, **{"given": "Hello", **_given(asked)})
    assert error["param"] == param
    for tool in asked.get("tools", ()):
        assert tool["type"] in ("function", "namespace") or tool["type"] in error["message"]


def _given(asked: dict[str, Any]) -> dict[str, Any]:
    return {"given" if name == "input" else name: value for name, value in asked.items()}


@pytest.mark.parametrize(
    "schema", [{"title": "\ud800"}, {"not": {}}, {"type": "objekt"}, {"enum": []}]
)
def test_schemas_that_are_refused(tiny_server: Running, schema: dict[str, Any]) -> None:
    wanted = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
    assert refusal(tiny_server, text=wanted)["message"]
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert tiny_server.chat("Hello", response_format=wanted).status == 400


def test_deep_and_endless(tiny_server: Running) -> None:
    deep = "[" * 5_000 + "]" * 5_000
    for field in ('"input": DEEP', '"input": "x", "tools": DEEP', '"input": "x", "metadata": DEEP'):
        data = ("{" + field.replace("DEEP", deep) + "}").encode()
        headers = {"content-type": "application/json"}
        assert tiny_server.ask("POST", "/v1/responses", data, headers).status == 400
    assert respond(tiny_server, "x" * (2**22 + 1)).error["code"] == "context_length_exceeded"
    for half in ("\ud800", [assistant("\ud800")], [thought("\ud800"), *user("x")]):
        assert respond(tiny_server, half).status == 400
    said = respond(tiny_server, max_output_tokens=1).json["output"][0]["id"]
    many = [{"type": "item_reference", "id": said}] * 2
    error = refusal(tiny_server, many)
    assert (error["code"], error["param"]) == ("duplicate_item", "input[1].id")


@pytest.mark.parametrize(
    "given",
    [
        {"input": [0] * 1000},
        {"input": [{"role": "user", "content": [0] * 1000}]},
        {"input": [{"type": "reasoning", "summary": [0] * 1000}]},
        {"input": "x", "tools": [0] * 1000},
        {"input": "x", "include": [0] * 1000},
        {"input": "x", "metadata": {str(i): 0 for i in range(1000)}},
    ],
)
def test_what_is_wrong_a_thousand_times_is_complained_about_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        ResponseRequest.model_validate(given)
    assert caught.value.error_count() < 10


def test_a_web_search_is_left_out(tiny_server: Running) -> None:
    """Codex offers one with each request."""
    search = {"type": "web_search", "external_web_access": True}
    told = body(tiny_server, "Hello", tools=[search, FUNCTION], max_output_tokens=2)
    alone = body(tiny_server, "Hello", tools=[FUNCTION], max_output_tokens=2)
    assert [tool["name"] for tool in told["tools"]] == [FUNCTION["name"]]
    assert told["usage"]["input_tokens"] == alone["usage"]["input_tokens"]
    assert body(tiny_server, "Hello", tools=[search], max_output_tokens=2)["tools"] == []
    for choice in ("required", {"type": "web_search"}):
        assert refusal(tiny_server, tools=[search], tool_choice=choice)["param"] == "tool_choice"


def turns(*items: Any) -> list[Turn]:
    return turns_of(READ.validate_python(list(items)), lambda identity: None)


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "output_text", "text": text}]}


def thought(text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content, **more}


def call(identity: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": identity, "name": "f", "arguments": "{}"}


def test_the_items_of_an_answer_are_one_turn() -> None:
    output = {"type": "function_call_output", "call_id": "a", "output": "Noon."}
    made = turns(
        *user("Well?"),
        thought("Hm."),
        assistant("I look"),
        call("a"),
        assistant(" twice."),
        call("b"),
        output,
        {**output, "call_id": "b"},
        thought("So."),
        assistant("Noon."),
        assistant("Or one."),
        {"type": "message", "role": "developer", "content": "Stop."},
    )
    roles = ["user", "assistant", "tool", "tool", "assistant", "assistant", "system"]
    assert [turn.role for turn in made] == roles
    answer = made[1]
    assert (answer.reasoning, list(answer.parts)) == ("Hm.", ["I look twice."])
    assert [one["id"] for one in answer.tool_calls] == ["a", "b"]
    assert [made[i].tool_call_id for i in (2, 3)] == ["a", "b"]
    assert [(made[i].reasoning, list(made[i].parts)) for i in (4, 5)] == [
        ("So.", ["Noon."]),
        (None, ["Or one."]),
    ]
    (alone,) = turns(call("a"))
    assert list(alone.parts) == []


def test_thoughts_in_every_form_that_they_come_back_in() -> None:
    summary = [{"type": "summary_text", "text": text} for text in ("Hm.", "So.")]
    for item, read in (
        (thought("Hm."), "Hm."),
        ({"type": "reasoning", "summary": summary, "encrypted_content": "else's"}, "Hm.\n\nSo."),
        ({"type": "reasoning", "summary": [], "encrypted_content": sealed("Hm, ü.")}, "Hm, ü."),
        ({"type": "reasoning", "summary": []}, None),
    ):
        (made,) = turns(item, assistant("Yes."))
        assert made.reasoning == read
    for foreign in ("", "gAAAA", "Zm9v", "ü", sealed("x")[:-2]):
        with pytest.raises(ValueError, match="another service"):
            opened(foreign)
    with pytest.raises(ApiError, match="encrypted_content"):
        turns({"type": "reasoning", "encrypted_content": "Zm9v"})


@pytest.mark.parametrize(
    ("part", "small"),
    [
        ({"type": "input_image", "image_url": "x", "detail": "low"}, True),
        ({"type": "input_image", "image_url": "x", "detail": "high"}, False),
        ({"type": "input_image", "image_url": "x"}, False),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "low"}}, True),
        ({"type": "image_url", "image_url": {"url": "x"}, "detail": "low"}, True),
    ],
)
def test_pictures_in_low_detail(part: dict[str, Any], small: bool) -> None:
    output = {"type": "function_call_output", "call_id": "a", "output": [part]}
    for turn in turns(*user([part]), output):
        assert list(turn.parts) == [Shown("x", small)]


def test_system_messages_that_begin_are_one() -> None:
    told = [Message("system", "Be kind."), Message("system", "Be brief."), Message("user", "Hi")]
    merged = one_system([*told, Message("system", "Stop.")])
    assert [(m.role, m.text) for m in merged] == [
        ("system", "Be kind.\n\nBe brief."),
        ("user", "Hi"),
        ("system", "Stop."),
    ]
    assert one_system(told[1:]) == told[1:]


def test_the_document_tells_of_items(tiny_server: Running) -> None:
    schemas = tiny_server.ask("GET", "/openapi.json").json["components"]["schemas"]
    asked = schemas["ResponseRequest"]
    assert asked["additionalProperties"] is False
    assert "ReasoningItem" in json.dumps(asked["properties"]["input"])
    assert "NamespaceTool" in json.dumps(asked["properties"]["tools"])
