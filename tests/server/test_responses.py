"""/v1/responses, as OpenAI's own client has it: items, events, tools, formats, pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field
from support import recited
from support.call_forms import TOOLS
from support.responses import (
    body,
    client_of,
    events,
    put_together,
    refusal,
    respond,
    text_of,
    without_names,
)
from support.serving import Running, data_uri, encoded, running

from engine import Engine, load
from engine.events import ToolCall, ToolCallDelta
from engine.server.responses.writing import Writer

OFFERED = [{"type": "function", **TOOLS[0]["function"]}, {"type": "function", **TOOLS[1]}]
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm", "days": 3}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
NONE = '<tool_call>\n{"name": "sing", "arguments": {}}\n</tool_call>'
CUT = '<tool_call>\n{"name": "clock", "arguments": {]}\n</tool_call>'
SCRIPTS = {
    1: f"Let me look.\n{WEATHER}\n{CLOCK}",
    2: f"{CLOCK}\nSo it is.",
    3: f"A song: {NONE}! And {CUT}.",
    4: "It rains at noon.",
    5: '<tool_call>\n{"name": "home.clock", "arguments": {}}\n</tool_call>',
}
"""What is said to so many messages."""


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(recited.save(tmp_path_factory.mktemp("recited") / "model", SCRIPTS)) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(reciting: Engine) -> Iterator[Running]:
    with running(reciting) as server:
        yield server


def said(count: int) -> list[Any]:
    return [{"role": "user", "content": "Well?"}] * count


def calls_of(response: Any) -> list[Any]:
    return [item for item in response["output"] if item["type"] == "function_call"]


@pytest.mark.parametrize(
    ("count", "asked", "kinds"),
    [
        (1, {}, ["message", "function_call", "function_call"]),
        (1, {"parallel_tool_calls": False}, ["message", "function_call"]),
        (2, {}, ["function_call", "message"]),
        (3, {}, ["message"]),
        (4, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, ["message"]),
        (4, {"max_output_tokens": 1}, ["message"]),
        (4, {"logit_bias": {"2": 100}}, ["message"]),
        (4, {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 8}, ["message"]),
    ],
)
def test_a_stream_tells_what_the_whole_does(
    server: Running, count: int, asked: dict[str, Any], kinds: list[str]
) -> None:
    whole = body(server, said(count), tools=OFFERED, **asked)
    told = put_together(events(server, said(count), tools=OFFERED, **asked))
    assert without_names(told) == without_names(whole)
    assert [item["type"] for item in told["output"]] == kinds
    assert (told["status"] == "incomplete") == ("max_output_tokens" in asked)
    assert told["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_round_trip(server: Running) -> None:
    with client_of(server) as client:
        asked: dict[str, Any] = {"model": "demo", "tools": OFFERED}
        first = client.responses.create(input="The weather, and when?", **asked)
        assert first.output_text == "Let me look."
        calls = [item for item in first.output if item.type == "function_call"]
        given = [(call.name, json.loads(call.arguments)) for call in calls]
        assert given == [("weather", {"city": "Ulm", "days": 3}), ("clock", {})]
        outputs: list[Any] = [
            {"type": "function_call_output", "call_id": call.call_id, "output": output}
            for call, output in zip(
                calls, ("Rain.", [{"type": "input_text", "text": "Noon."}]), strict=True
            )
        ]
        kept = client.responses.create(input=outputs, previous_response_id=first.id, **asked)
        whole: list[Any] = [*said(1), *(item.to_dict() for item in first.output), *outputs]
        whole[0] = {"role": "user", "content": "The weather, and when?"}
        sent = client.responses.create(input=whole, store=False, **asked)
        for answer in (kept, sent):
            assert answer.output_text == "It rains at noon."
            assert answer.usage is not None
            assert first.usage is not None
            # All that was read and said before is in the cache, the calls as they were written.
            assert answer.usage.input_tokens_details.cached_tokens >= first.usage.total_tokens
        referred: list[Any] = [{"type": "item_reference", "id": item.id} for item in first.output]
        again = client.responses.create(input=[whole[0], *referred, *outputs], **asked)
        assert again.output_text == "It rains at noon."
        assert again.usage is not None
        assert sent.usage is not None
        assert again.usage.input_tokens == sent.usage.input_tokens


def test_the_clients_own_stream(server: Running) -> None:
    with (
        client_of(server) as client,
        client.responses.stream(model="demo", input=said(1), tools=OFFERED) as stream,  # type: ignore[arg-type]
    ):
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len(pieces) > 1
    assert "".join(pieces) == final.output_text == "Let me look."


def test_what_is_no_call_is_told_as_text_and_never_as_a_call(server: Running) -> None:
    told = events(server, said(3), tools=OFFERED)
    assert not any("function_call" in json.dumps(event) for event in told[2:])
    response = put_together(told)
    assert text_of(response) == f"A song: {NONE}\n! And {CUT}\n."
    assert response["status"] == "completed"
    assert response["usage"]["sightline"]["broken_calls"] == 2


def test_choices(server: Running) -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "weather"}],
    }
    (call,) = calls_of(body(server, said(1), tools=OFFERED, tool_choice=allowed))
    assert call["name"] == "weather"
    assert calls_of(body(server, said(1), tools=OFFERED, tool_choice="none")) == []
    for choice in ("required", {"type": "function", "name": "clock"}):
        asked = {"tools": OFFERED, "tool_choice": choice, "parallel_tool_calls": False}
        told = events(server, said(2), **asked)
        (call,) = calls_of(put_together(told))
        assert (call["name"], call["arguments"]) == ("clock", "{}")
        pieces = [e for e in told if e["type"] == "response.function_call_arguments.delta"]
        assert len(pieces) > 1


def test_an_enforced_call_that_is_cut_off_is_none(server: Running) -> None:
    """Of what was told of it, nothing is in the response, but as text."""
    asked = {"tools": OFFERED[1:], "tool_choice": "required"}
    cut = False
    for most in (30, 40, 46, 60):
        told = events(server, said(2), max_output_tokens=most, **asked)
        last = told[-1]["response"]
        assert last["status"] == "incomplete"
        assert all(call["status"] == "completed" for call in calls_of(last))
        ended = [e["item"] for e in told if e["type"] == "response.output_item.done"]
        assert ended == last["output"]
        cut |= sum(e["type"] == "response.output_item.added" for e in told) > len(ended)
    assert cut


def test_of_calls_that_stand_or_fall_together_none_is_told_too_early(
    tmp_path: Path,
) -> None:
    """Mistral's in one list: where it is cut off, none of them is a call."""
    folder = recited.save(tmp_path / "model", {}, parser="mistral", added=("[TOOL_CALLS]",))
    clock = {**OFFERED[1], "parameters": {"additionalProperties": False}}
    asked = {"tools": [clock], "tool_choice": "required", "max_output_tokens": 100}
    with load(folder) as engine, running(engine) as server:
        no_end = {str(token): -100 for token in engine.tokenize("]")}
        told = events(server, said(1), logit_bias=no_end, **asked)
    last = told[-1]["response"]
    assert '"clock"' in text_of(last).partition("}, {")[2]  # another was begun
    assert calls_of(last) == []
    ended = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert ended == last["output"]


def test_calls_in_one_block_are_told_one_after_the_other() -> None:
    writer = Writer(None, must_call=True)  # type: ignore[arg-type]
    pieces = [(0, "{"), (0, "}"), (1, "{"), (1, "}")]
    told = [e for i, text in pieces for e in writer.tell(ToolCallDelta(i, f"c{i}", "f", text))]
    told += [e for i in range(2) for e in writer.tell(ToolCall(i, f"c{i}", "f", {}, "{}"))]
    told += writer.end(cut=False)
    kinds = [event["type"].removeprefix("response.") for event in told]
    piece, whole = "function_call_arguments.delta", "function_call_arguments.done"
    begun, done = "output_item.added", "output_item.done"
    assert kinds == [begun, piece, piece, whole, done, begun, piece, whole, done]
    assert [(item["call_id"], item["arguments"]) for item in writer.items] == [
        ("c0", "{}"),
        ("c1", "{}"),
    ]
    assert not writer.broken


def test_tools_in_a_namespace(server: Running) -> None:
    home = {"type": "namespace", "name": "home", "description": "At home.", "tools": OFFERED[1:]}
    response = put_together(events(server, said(5), tools=[OFFERED[0], home]))
    (call,) = calls_of(response)
    assert (call["name"], call["namespace"]) == ("clock", "home")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "Noon."}
    counts = {
        body(server, [*said(1), {**call, "name": name, "namespace": group}, output], tools=[home])[
            "usage"
        ]["input_tokens"]
        for name, group in (("clock", "home"), ("home.clock", None))
    }
    assert len(counts) == 1


class Weather(BaseModel):
    city: Literal["Ulm", "Bonn"]
    degrees: int = Field(ge=-60, le=60)


def test_formats(tiny_server: Running) -> None:
    drawn: dict[str, Any] = {"temperature": 1.0, "max_output_tokens": 120}
    with client_of(tiny_server) as client:
        done = client.responses.parse(
            model="tiny", input="Weather?", text_format=Weather, extra_body={"seed": 1}, **drawn
        )
    assert isinstance(done.output_parsed, Weather)
    schema = Weather.model_json_schema()
    wanted = {"format": {"type": "json_schema", "name": "it", "schema": schema}, "verbosity": "low"}
    told = put_together(events(tiny_server, "Weather?", text=wanted, seed=1, **drawn))
    jsonschema.validate(json.loads(text_of(told)), schema)
    assert text_of(told) == done.output_text


def picture(colour: str, **more: Any) -> dict[str, Any]:
    return {"type": "input_image", "image_url": data_uri(encoded((80, 60), colour=colour)), **more}


def test_pictures(seeing_server: Running) -> None:
    parts = [{"type": "input_text", "text": "What is it?"}, picture("olive", detail="auto")]
    asked: dict[str, Any] = {"max_output_tokens": 4}
    first = body(seeing_server, [{"role": "user", "content": parts}], **asked)
    assert first["usage"]["sightline"]["images_encoded"] == 1
    more = {"previous_response_id": first["id"], **asked}
    second = body(seeing_server, "Is it green?", **more)
    assert second["usage"]["sightline"]["images_encoded"] == 0
    cached = second["usage"]["input_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["total_tokens"] - 1
    # Of a tool.
    tools = [{"type": "function", "name": "look", "strict": True}]
    call = {"type": "function_call", "call_id": "a1", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a1", "output": [picture("teal")]}
    shown = body(seeing_server, [*said(1), call, output], tools=tools, **asked)
    assert shown["usage"]["sightline"]["images_encoded"] == 1
    large = data_uri(encoded((1024, 64), colour="navy"))
    low = {"type": "input_image", "image_url": large, "detail": "low"}
    assert body(seeing_server, [{"role": "user", "content": [low]}], **asked)
    for source, code in (
        ("http://127.0.0.1/x.png", "image_source_not_allowed"),
        ("/etc/passwd", "invalid_image"),
        ("data:image/png;base64,AAAA", "invalid_image"),
    ):
        wrong = [{"role": "user", "content": [{"type": "input_image", "image_url": source}]}]
        assert refusal(seeing_server, wrong)["code"] == code
    many = [{"role": "user", "content": [picture("red")] * 33}]
    error = respond(seeing_server, many).error
    assert (error["code"], error["param"]) == ("too_many_images", "input")


def test_what_was_asked_is_told_again(tiny_server: Running) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "max_output_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning": {"effort": "none", "summary": None},
        "truncation": "disabled",
        "user": "Ann",
        "model": "gpt-5",
    }
    told = body(tiny_server, **asked)
    assert {name: told[name] for name in asked if name != "model"} == {
        name: value for name, value in asked.items() if name != "model"
    }
    assert told["model"] == "tiny"
    assert told["incomplete_details"] == {"reason": "max_output_tokens"}
    ignored = {"client_metadata": {}, "service_tier": "auto", "prompt_cache_key": "x"}
    assert body(tiny_server, max_output_tokens=2, max_tool_calls=3, **ignored)["store"] is True
