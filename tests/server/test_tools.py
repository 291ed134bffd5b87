"""Tools over the wire, as OpenAI's own client has them: asked for, called, answered."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support import recited
from support.call_forms import TOOLS
from support.serving import Running, data_uri, encoded, image_part, running

from engine import Engine, load
from engine.tools import grammar, reader

OFFERED = [TOOLS[0], {"type": "function", "function": TOOLS[1]}]
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm", "days": 3}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
NONE = '<tool_call>\n{"name": "sing", "arguments": {}}\n</tool_call>'
SCRIPTS = {
    1: f"Let me look.\n{WEATHER}\n{CLOCK}",
    2: CLOCK,
    3: f"A song: {NONE}!",
    4: "It rains at noon.",
}
"""What is said to so many messages."""
CLOSED = {"type": "object", "additionalProperties": False}


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(recited.save(tmp_path_factory.mktemp("recited") / "model", SCRIPTS)) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(reciting: Engine) -> Iterator[Running]:
    with running(reciting) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, *messages: Any, **more: Any) -> Any:
    more = {"tools": OFFERED, **more}
    return client.chat.completions.create(model="demo", messages=list(messages), **more)


QUESTION = {"role": "user", "content": "What is the weather, and when?"}


def test_a_round_trip(client: openai.OpenAI) -> None:
    choice = ask(client, QUESTION).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    calls = choice.message.tool_calls
    told = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
    assert told == [("weather", {"city": "Ulm", "days": 3}), ("clock", {})]
    assert len({call.id for call in calls}) == 2
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": content}
        for call, content in zip(calls, ("Rain.", None), strict=True)
    ]
    answer = ask(client, QUESTION, choice.message, *results)
    assert answer.choices[0].message.content == "It rains at noon."
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    # All that was read and said before is in the cache, the calls as they were written.
    before = ask(client, QUESTION).usage
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached == before.total_tokens


def test_streamed_as_whole(client: openai.OpenAI) -> None:
    for messages in ([QUESTION], [QUESTION, {"role": "user", "content": "And now?"}]):
        whole = ask(client, *messages).choices[0]
        text = ""
        reason = None
        calls: dict[int, dict[str, Any]] = {}
        pieces = 0
        for chunk in ask(client, *messages, stream=True):
            (choice,) = chunk.choices
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or ():
                pieces += 1
                if call.index not in calls:
                    assert call.type == "function"
                    calls[call.index] = {"id": call.id, "name": call.function.name, "given": ""}
                else:
                    assert (call.id, call.function.name) == (None, None)
                calls[call.index]["given"] += call.function.arguments
        assert (text or None, reason) == (whole.message.content, "tool_calls")
        told = [(call["name"], call["given"]) for _, call in sorted(calls.items())]
        assert told == [
            (call.function.name, call.function.arguments) for call in whole.message.tool_calls
        ]
        assert pieces > 2 * len(calls) - 1
    assert whole.message.content is None


def test_what_is_no_call_is_content(client: openai.OpenAI) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "Hm."}, QUESTION]
    answer = ask(client, *messages)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (f"A song: {NONE}\n!", "stop")
    assert choice.message.tool_calls is None
    assert answer.usage.model_extra["sightline"]["broken_calls"] == 1
    chunks = ask(client, *messages, stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content
    assert not any(delta.tool_calls for delta in deltas)


def test_one_call_at_most(client: openai.OpenAI) -> None:
    choice = ask(client, QUESTION, parallel_tool_calls=False).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"]
    assert choice.finish_reason == "tool_calls"


def test_calls_without_an_end(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that would rather do anything than end: whole ones, and as many as there may be
    (here 4). A name is called once."""
    for module in (grammar, reader):
        monkeypatch.setattr(module, "MOST_CALLS", 4)
    tools = [{"type": "function", "function": {"name": "go", "parameters": CLOSED}}]
    more = {"tools": tools, "max_tokens": 4000, "logit_bias": {"2": -100}, "temperature": 0}
    choice = ask(client, QUESTION, tool_choice="required", **more).choices[0]
    calls = [call.function for call in choice.message.tool_calls]
    assert [(call.name, call.arguments) for call in calls] == [("go", "{}")] * 4
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    told: dict[int, str] = {}
    reasons = set()
    for chunk in ask(client, QUESTION, tool_choice="required", stream=True, **more):
        (choice,) = chunk.choices
        reasons.add(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            told[call.index] = told.get(call.index, "") + call.function.arguments
    assert told == dict.fromkeys(range(4), "{}")
    assert reasons == {None, "tool_calls"}
    named = {"type": "function", "function": {"name": "go"}}
    choice = ask(client, QUESTION, tool_choice=named, **more).choices[0]
    assert len(choice.message.tool_calls) == 1


def test_choices(client: openai.OpenAI) -> None:
    choice = ask(client, QUESTION, tool_choice="none").choices[0]
    assert choice.message.tool_calls is None
    assert "<tool_call>" not in choice.message.content
    named = {"type": "function", "function": {"name": "clock"}}
    for given in (named, "required"):
        choice = ask(client, QUESTION, tool_choice=given, max_tokens=400).choices[0]
        if choice.finish_reason == "tool_calls":  # else a text has no end yet
            assert not choice.message.content
            assert given == "required" or choice.message.tool_calls[0].function.name == "clock"
        else:
            assert choice.finish_reason == "length"


def test_some_of_the_tools(client: openai.OpenAI) -> None:
    """As OpenAI has it: an answer may call these alone."""

    def allowed(name: str, mode: str) -> dict[str, Any]:
        tools = [{"type": "function", "function": {"name": name}}]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    message = ask(client, QUESTION, tool_choice=allowed("weather", "auto")).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["weather"]
    asked = {"parallel_tool_calls": False, "max_tokens": 400}
    choice = ask(client, QUESTION, tool_choice=allowed("clock", "required"), **asked).choices[0]
    if choice.finish_reason == "tool_calls":  # else a text has no end yet
        assert [call.function.name for call in choice.message.tool_calls] == ["clock"]
    with pytest.raises(openai.BadRequestError, match="tool_choice allows a tool that there is not"):
        ask(client, QUESTION, tool_choice=allowed("sing", "auto"))


REFUSED: list[tuple[Any, str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ({"tools": [OFFERED[0]] * 2}, "tools"),
    ({"tools": [OFFERED[0]] * 300}, "tools"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}]},
        "tools",
    ),
    ({"tools": OFFERED, "tool_choice": "sing"}, "tool_choice"),
    (
        {"tools": OFFERED, "tool_choice": {"type": "function", "function": {"name": "sing"}}},
        "tool_choice",
    ),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": OFFERED, "tool_choice": {"type": "custom"}}, "tool_choice"),
    (
        {
            "tools": OFFERED,
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": []},
            },
        },
        "tool_choice.allowed_tools.tools",
    ),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=[p for _, p in REFUSED])
def test_refused_by_name(server: Running, body: dict[str, Any], param: str) -> None:
    reply = server.chat("Hello", **body)
    assert reply.status == 400
    assert reply.error["param"] == param


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}],
        },
        {"role": "tool", "tool_call_id": 5, "content": "x"},
        {"role": "user", "content": None},
    ],
)
def test_messages_that_are_none(server: Running, message: dict[str, Any]) -> None:
    body = {"model": "demo", "messages": [QUESTION, message], "tools": OFFERED}
    reply = server.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.error["message"]


def test_a_picture_in_a_result(seeing_server: Running) -> None:
    """By a model whose template knows neither tools nor pictures: a part among its texts."""
    call = {"id": "a1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    picture = image_part(data_uri(encoded()))
    tools = [{"type": "function", "function": {"name": "look"}}]
    messages = [
        {"role": "user", "content": "Look!"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": "a1",
            "content": [{"type": "text", "text": "A view:"}, picture],
        },
    ]
    body = {"model": "demo", "messages": messages, "tools": tools, "max_tokens": 2}
    reply = seeing_server.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 200, reply.json
    told = reply.json["usage"]["sightline"]
    assert told["images_encoded"] + told["images_reused"] == 1
