"""Responses that are kept: whose they are, how many, how long, and what goes on from them."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.responses import body, client_of, refusal, respond, text_of
from support.serving import Running, encoded, running

from engine import Engine
from engine.images import load_picture
from engine.prompts.messages import Message
from engine.server.responses.memory import ResponseMemory

SHORT: dict[str, Any] = {"max_output_tokens": 3}


@pytest.fixture(scope="module")
def server(letters_engine: Engine) -> Iterator[Running]:
    with running(letters_engine) as server:
        yield server


def test_each_turn_runs_only_what_is_new(server: Running) -> None:
    response = body(server, "Once upon a time.", instructions="Be kind.", **SHORT)
    sent: list[Any] = [{"role": "user", "content": "Once upon a time."}]
    for number in range(3):
        before = response
        asked = {"instructions": "Be kind.", **SHORT}
        more = {"role": "user", "content": f"And then? {number}"}
        response = body(server, [more], previous_response_id=before["id"], **asked)
        cached = response["usage"]["input_tokens_details"]["cached_tokens"]
        assert cached >= before["usage"]["total_tokens"] - 1
        sent += [{"role": "assistant", "content": text_of(before)}, more]
        again = body(server, sent, store=False, **asked)
        assert text_of(again) == text_of(response)
        assert again["usage"]["input_tokens"] == response["usage"]["input_tokens"]


def test_instructions_are_not_kept(server: Running) -> None:
    first = body(server, instructions="Be very brief. " * 20, **SHORT)
    second = body(server, "More", previous_response_id=first["id"], **SHORT)
    assert second["usage"]["input_tokens"] < first["usage"]["input_tokens"]


def test_what_is_kept_is_found_and_let_go(server: Running) -> None:
    with client_of(server) as client:
        made = client.responses.create(model="demo", input="Hello", max_output_tokens=2)
        assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
        client.responses.delete(made.id)
    told = body(server, **SHORT)
    path = f"/v1/responses/{told['id']}"
    assert server.ask("GET", path).json == told
    assert server.ask("GET", f"/responses/{told['id']}").json == told
    assert server.ask("GET", f"{path}?stream=true").error["param"] == "stream"
    assert server.ask("GET", f"{path}?stream=perhaps").status == 400
    # As far as clients are known: a program at an address.
    other = {"user-agent": "another"}
    for method in ("GET", "DELETE"):
        reply = server.ask(method, path, headers=other)
        assert (reply.status, reply.error["code"]) == (404, "response_not_found")
    item = told["output"][0]["id"]
    for asked in (
        {"input": "More", "previous_response_id": told["id"]},
        {"input": [{"type": "item_reference", "id": item}]},
    ):
        reply = server.ask("POST", "/v1/responses", {**SHORT, **asked}, other)
        assert reply.error["code"] in ("previous_response_not_found", "item_not_found")
        assert server.ask("POST", "/v1/responses", {**SHORT, **asked}).status == 200
    gone = server.ask("DELETE", path).json
    assert gone == {"id": told["id"], "object": "response", "deleted": True}
    assert server.ask("DELETE", path).status == 404
    assert server.ask("GET", path).status == 404
    error = refusal(server, "More", previous_response_id=told["id"])
    assert (error["code"], error["param"]) == (
        "previous_response_not_found",
        "previous_response_id",
    )
    assert refusal(server, [{"type": "item_reference", "id": item}])["code"] == "item_not_found"


def test_what_is_not_to_be_kept_is_not(server: Running) -> None:
    kept = len(memory_of(server))
    told = body(server, store=False, **SHORT)
    assert told["store"] is False
    assert server.ask("GET", f"/v1/responses/{told['id']}").status == 404
    assert respond(server, "x" * 5000).status == 400
    assert len(memory_of(server)) == kept


@pytest.mark.parametrize("identity", ["", "resp_", "%ff", "../models", "x" * 5000, "resp_%00"])
def test_odd_names(server: Running, identity: str) -> None:
    reply = server.ask("GET", f"/v1/responses/{identity}")
    assert reply.status in (404, 405)
    assert len(reply.error["message"]) < 400
    given = server.ask("POST", "/v1/responses", {"input": "x", "previous_response_id": identity})
    assert given.status == 400
    assert len(given.error["message"]) < 600


def memory_of(server: Running) -> ResponseMemory:
    kept: ResponseMemory = server.server.app.state.responses
    return kept


def told(identity: str, size: int = 0) -> dict[str, Any]:
    return {"id": identity, "output": [{"id": f"msg_{identity}"}], "text": "x" * size}


def test_they_are_so_many_at_most() -> None:
    memory = ResponseMemory(most=3)
    for i in range(3):
        assert memory.keep(told(f"r{i}"), [Message("user", "x")], "me")
    assert memory.find("r0", "me")  # asked for again, it is the last to go
    memory.keep(told("r3"), [Message("user", "x")], "me")
    assert [bool(memory.find(f"r{i}", "me")) for i in range(4)] == [True, False, True, True]
    assert memory.item("msg_r1", "me") is None
    assert memory.item("msg_r2", "me") == {"id": "msg_r2"}
    assert memory.find("r2", "me").told == told("r2")  # type: ignore[union-attr]
    assert memory.item("msg_r2", "you") is None
    assert memory.find("r2", "you") is None
    assert not memory.drop("r2", "you")


def test_they_take_so_much_at_most_and_what_they_share_counts_once() -> None:
    memory = ResponseMemory(most_bytes=100_000)
    shared = [Message("user", "x" * 40_000)]
    for i in range(5):
        shared.append(Message("assistant", f"{i}"))
        assert memory.keep(told(f"r{i}"), shared, "me")
    assert len(memory) == 5
    assert memory.held < 60_000
    assert not memory.keep(told("large"), [Message("user", "x" * 100_000)], "me")
    assert not memory.keep(told("large", 100_000), [], "me")
    assert len(memory) == 5
    memory.keep(told("other"), [Message("user", "y" * 70_000)], "me")
    assert len(memory) == 1
    assert memory.held > 70_000
    assert memory.drop("other", "me")
    assert (len(memory), memory.held) == (0, 0)
    for i in range(1000):
        assert memory.keep(told(f"r{i}"), [Message("user", "z" * 100)] * 3, "me")
        assert memory.held <= 100_000


def test_what_is_large_and_seems_small() -> None:
    memory = ResponseMemory(most_bytes=100_000)
    picture = load_picture(encoded((8, 8)) + bytes(2**17))
    assert not memory.keep(told("a"), [Message("user", picture)], "me")
    assert not memory.keep(told("b"), [Message("user", "x")] * 20_000, "me")
    items = {"id": "c", "output": [{"id": f"msg_{i}"} for i in range(1000)]}
    assert not memory.keep(items, [], "me")
    assert (len(memory), memory.held) == (0, 0)
