"""What /v1/responses sends, read and held to openai-python's own types."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from support.serving import Reply, Running

OWN = {"store", "sightline"}
"""What stands beside openai-python's fields: OpenAI's service tells the first, too."""


def respond(server: Running, given: Any = "Hello", **more: Any) -> Reply:
    return server.ask("POST", "/v1/responses", {"input": given, **more})


def body(server: Running, given: Any = "Hello", **more: Any) -> dict[str, Any]:
    reply = respond(server, given, **more)
    assert reply.status == 200, reply.body
    check(Response, reply.json)
    return dict(reply.json)


def refusal(server: Running, given: Any = "Hello", **more: Any) -> dict[str, Any]:
    reply = respond(server, given, **more)
    assert reply.status in (400, 404), reply.body
    assert len(reply.body) < 1000
    return reply.error


def text_of(response: dict[str, Any]) -> str:
    """All that it says."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in messages for part in item["content"])


def events(server: Running, given: Any = "Hello", **more: Any) -> list[dict[str, Any]]:
    reply = respond(server, given, stream=True, **more)
    assert reply.status == 200, reply.body
    return read_events(reply.body)


def read_events(data: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each of them checked."""
    read = []
    for block in data.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not any(lines):
            continue
        name, told = lines
        event = json.loads(told.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check(_KINDS[event["type"]], event)
        read.append(event)
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    return read


def check(kind: type[BaseModel], value: dict[str, Any]) -> None:
    """It is what openai-python takes it for, with all that it needs and nothing beside."""
    unknown = set(_unknown(TypeAdapter(kind).validate_python(value)))
    assert unknown <= OWN, unknown


def _unknown(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in value.model_fields_set - set(value.model_extra or ()):
            yield from _unknown(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from _unknown(one)


def _kinds(union: Any) -> Iterator[tuple[str, Any]]:
    for kind in get_args(get_args(union)[0] if get_origin(union) is Annotated else union):
        for name in get_args(kind.model_fields["type"].annotation):
            yield name, kind


_KINDS: dict[str, Any] = dict(_kinds(ResponseStreamEvent))


def put_together(told: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that events tell, having checked that they tell the same in pieces."""
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]
    last = told[-1]["response"]
    assert told[-1]["type"] == f"response.{last['status']}"
    assert all(event["response"]["id"] == last["id"] for event in told if "response" in event)
    done: list[Any] = []
    for event in told:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(done)
                item, pieces = event["item"], ""
                assert item["status"] == "in_progress"
            case "output_item.done":
                assert event["item"]["id"] == item["id"]
                done.append(event["item"])
                part = (event["item"].get("content") or event["item"].get("summary") or [{}])[0]
                assert pieces == event["item"].get("arguments", part.get("text"))
            case name if "item_id" in event:
                at = (event["item_id"], event["output_index"])
                assert at == (item["id"], len(done))
                pieces += event["delta"] if name.endswith(".delta") else ""
                if name.endswith("ext.done") or name.endswith("arguments.done"):
                    assert event.get("text", event.get("arguments")) == pieces
    assert done == last["output"]
    return dict(last)


def without_names(response: dict[str, Any]) -> list[Any]:
    """Its output, but for what is made up for each anew."""
    return [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in response["output"]
    ]


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
