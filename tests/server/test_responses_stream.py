"""Streams of /v1/responses: thoughts in them, silence, failures, and clients that leave."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")

from support import published_qwen_templates as published
from support import scripted
from support.responses import body, client_of, events, put_together, read_events, text_of
from support.serving import Flow, Reply, Running, Watched, read_all, running
from support.waiting import wait_for

from engine import Engine, load

NO_END = {"2": -100}
"""By which the model of letters never ends an answer."""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("thinker") / "model"
    with (
        load(scripted.save(folder, published.QWEN35, scripted.THINKS), parallel=2) as engine,
        running(engine) as server,
    ):
        yield server


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({}, "content"),
        ({"reasoning": {"effort": "high"}}, "content"),
        ({"reasoning": {"summary": "auto"}}, "summary"),
        ({"reasoning": {"generate_summary": "detailed"}}, "summary"),
        ({"reasoning": {"effort": "none"}}, None),
        ({"enable_thinking": False}, None),
        ({"include": ["reasoning.encrypted_content"], "store": False}, "content"),
        ({"include": ["message.output_text.logprobs"]}, "content"),
    ],
)
def test_thoughts(thinker: Running, asked: dict[str, Any], where: str | None) -> None:
    told = put_together(events(thinker, "Well?", **asked))
    assert text_of(told) == text_of(body(thinker, "Well?", **asked)) == "Yes sir"
    thoughts = [item for item in told["output"] if item["type"] == "reasoning"]
    if where is None:
        assert thoughts == []
    else:
        assert "".join(part["text"] for part in thoughts[0][where]) == "Hm so"
        assert ("encrypted_content" in thoughts[0]) == ("store" in asked)
    expected = 0 if where is None else 2
    assert told["usage"]["output_tokens_details"]["reasoning_tokens"] == expected
    if asked.get("include") == ["message.output_text.logprobs"]:
        told_of = told["output"][-1]["content"][0]["logprobs"]
        # Behind the tokens that end the thought, which make no text.
        assert "".join(entry["token"] for entry in told_of).endswith("\n\nYes sir")


def test_a_thought_that_is_cut_off(thinker: Running) -> None:
    told = put_together(events(thinker, "Well?", max_output_tokens=2))
    (item,) = told["output"]
    assert (item["type"], item["status"], told["status"]) == (
        "reasoning",
        "incomplete",
        "incomplete",
    )


def test_thoughts_that_are_sent_back(thinker: Running) -> None:
    """By their text, as what was sealed, and kept here: all the same to the model, and warm."""
    question: Any = {"role": "user", "content": "Well, well? " * 20}
    include = ["reasoning.encrypted_content"]
    first = body(thinker, [question], include=include)
    sealed = [
        {k: v for k, v in item.items() if k != "content" or item["type"] == "message"}
        for item in first["output"]
    ]
    more = {"role": "user", "content": "And?"}
    counts = set()
    for given, before in (
        ([more], first["id"]),
        ([question, *first["output"], more], None),
        ([question, *sealed, more], None),
    ):
        asked = {"previous_response_id": before} if before else {"store": False}
        usage = body(thinker, given, **asked)["usage"]
        counts.add(usage["input_tokens"])
        # All but the beginning of a thought, which the template leaves out of earlier turns.
        cached = usage["input_tokens_details"]["cached_tokens"]
        assert cached >= first["usage"]["input_tokens"] - len(["<think>", "\n"])
    assert len(counts) == 1


def test_silence_is_filled_with_events(letters: Engine) -> None:
    """Comments are none to clients that wait for the next event."""
    done = threading.Event()
    with running(letters, keep_alive_seconds=0.02) as server:
        letters._worker.call(lambda _: done.wait())
        with server.connect() as connection:
            request = b'{"input": "Hi", "stream": true, "max_output_tokens": 2}'
            connection.sendall(_head(len(request)) + request)
            data = b""
            while data.count(b"event: response.in_progress") < 4:
                data += connection.recv(4096)
            done.set()
            data += read_all(connection)
    told = read_events(Reply(data).body)
    assert put_together(told)["status"] == "incomplete"


def _head(length: int) -> bytes:
    return (
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
    )


@pytest.fixture
def endless(letters: Engine) -> Iterator[Running]:
    """One whose answers wait after two tokens until they are cancelled."""
    flow = Flow()
    flow.hold(2)
    watched: Any = Watched(letters, flow.at_event)
    with running(watched) as server:
        yield server
        flow.release()


def test_a_stream_that_fails_says_so(endless: Running) -> None:
    server = endless
    with client_of(server) as client:
        asked: Any = {"extra_body": {"logit_bias": NO_END}}
        stream = client.responses.create(model="demo", input="Hi", stream=True, **asked)
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                server.server.app.state.service.cancel_all()
        assert event.type == "response.failed"
        assert event.response.error is not None
        assert event.response.error.code == "server_error"
        assert "shutting down" in event.response.error.message
        assert "response.output_item.done" not in kinds
        assert server.ask("GET", f"/v1/responses/{event.response.id}").status == 404


def test_whoever_leaves_ends_its_answer(endless: Running) -> None:
    cancelled = 'sightline_answers_total{reason="cancelled"}'
    server = endless
    for stream in (True, False):
        before = server.figures().get(cancelled, 0.0)
        with client_of(server) as client, server.connect() as connection:
            asked: Any = {"extra_body": {"logit_bias": NO_END}}
            if stream:
                answer = client.responses.create(model="demo", input="Hi", stream=True, **asked)
                next(iter(answer))
                answer.close()
            else:
                request = b'{"input": "Hi", "logit_bias": {"2": -100}}'
                connection.sendall(_head(len(request)) + request)
                wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 1)
        wait_for(lambda b=before: server.figures().get(cancelled, 0.0) > b)  # type: ignore[misc]
    assert len(server.server.app.state.responses) == 0
    assert server.ask("POST", "/v1/responses", {"input": "Hi", "max_output_tokens": 1})
    assert len(server.server.app.state.responses) == 1
