"""Several clients at once: order, a full queue, leaving, and the end of the server."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.serving import Flow, Reply, Running, Watched, image_part, read_all, running
from support.waiting import wait_for

from engine import Engine, Finished, Generation, Request
from engine.events import Event
from engine.server.fetch import Fetcher

NO_END = {"2": -100}
"""A bias by which the model never ends an answer by itself."""
LONG: dict[str, Any] = {"max_tokens": 2000}
"""An answer about as long as the context."""


@pytest.fixture
def flow() -> Iterator[Flow]:
    """How far the answers of `engine` may go."""
    flow = Flow()
    yield flow
    flow.release()


@pytest.fixture
def engine(letters_engine: Engine, flow: Flow) -> Any:
    return Watched(letters_engine, flow.at_event)


def start(server: Running, content: Any = "x", agent: str = "test", **more: Any) -> socket.socket:
    """Send a request for a stream, and leave its answer to whoever reads."""
    body = {"model": server.model, "max_tokens": 300, "stream": True, "logit_bias": NO_END, **more}
    data = json.dumps(body | {"messages": [{"role": "user", "content": content}]}).encode()
    connection = server.connect()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        f"User-Agent: {agent}\r\n\r\n"
    )
    connection.sendall(head.encode() + data)
    return connection


def read_until(connection: socket.socket, what: bytes) -> bytes:
    data = b""
    while what not in data:
        piece = connection.recv(4096)
        assert piece, data
        data += piece
    return data


def test_whoever_comes_first_is_answered_first(engine: Engine, flow: Flow) -> None:
    flow.hold(2)
    with running(engine) as server, ExitStack() as stack:
        first = start(server, **LONG)
        read_until(first, b'"content":"')
        for number in range(4):
            waiting = stack.enter_context(start(server, max_tokens=5 + number))
            read_until(waiting, b": queued")
        first.close()
        flow.release()
        assert flow.order(5) == [LONG["max_tokens"], 5, 6, 7, 8]


@pytest.mark.parametrize("by", ["agent", "user"])
def test_one_client_with_many_requests_holds_no_other_up(
    engine: Engine, flow: Flow, by: str
) -> None:
    flow.hold(2)
    with running(engine) as server, ExitStack() as stack:
        first = stack.enter_context(start(server, **LONG, **{by: "many"}))
        read_until(first, b'"content":"')
        for name, tokens in [*[("many", 5)] * 4, ("one", 6)]:
            waiting = stack.enter_context(start(server, max_tokens=tokens, **{by: name}))
            read_until(waiting, b": queued")
        first.close()
        flow.release()
        assert flow.order(6) == [LONG["max_tokens"], 6, 5, 5, 5, 5]


def test_one_client_never_has_the_whole_queue(engine: Engine, flow: Flow) -> None:
    flow.hold(2)
    with running(engine, max_queue=4) as server, ExitStack() as stack:
        for _ in range(4):  # of five places
            connection = stack.enter_context(start(server, agent="many", **LONG))
            read_until(connection, b": queued")
        reply = Reply(read_all(stack.enter_context(start(server, agent="many"))))
        assert (reply.status, reply.error["code"]) == (429, "queue_full")
        other = stack.enter_context(start(server, agent="one"))
        read_until(other, b": queued")
        reply = Reply(read_all(stack.enter_context(start(server, agent="two"))))
        assert (reply.status, reply.error["code"]) == (429, "queue_full")


def test_a_full_queue_says_so_before_it_reads(engine: Engine, flow: Flow) -> None:
    flow.hold(2)
    with running(engine, max_queue=1) as server:
        at_work = start(server, **LONG)
        read_until(at_work, b'"content":"')
        waiting = start(server)
        read_until(waiting, b": queued")
        reply = server.chat("Hello")
        assert (reply.status, reply.error["code"]) == (429, "queue_full")
        assert int(reply.headers["retry-after"]) >= 1
        assert server.ask("GET", "/health").status == 200
        assert server.figures()["sightline_requests_in_flight"] == 2
        for connection in (at_work, waiting):
            connection.close()
        flow.release()
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 0)
        assert server.chat("Hello").status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_cancels_within_a_token(letters_engine: Engine, stream: bool) -> None:
    """The client leaves while the engine is at its fifth token, and there is no sixth."""
    connections: list[socket.socket] = []

    def at_event(generation: Generation, event: Event, count: int) -> None:
        if count == 5 and not generation.cancelled:
            wait_for(lambda: bool(connections))
            connections.pop().close()
            wait_for(lambda: generation.cancelled)

    with running(Watched(letters_engine, at_event)) as server:  # type: ignore[arg-type]
        connections.append(start(server, stream=stream))
        name = 'sightline_answers_total{reason="cancelled"}'
        wait_for(lambda: server.figures().get(name, 0) == 1)
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 0)
        figures = server.figures()
        assert figures["sightline_generated_tokens_total"] == 5
        # Nobody was told that the server is shutting down.
        assert not any('status="503"' in figure for figure in figures)


def test_leaving_while_a_picture_is_fetched_ends_the_fetching(engine: Engine) -> None:
    asked, ended = threading.Event(), threading.Event()

    async def resolve(host: str, port: int) -> list[str]:
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.set()
            raise
        return []

    fetcher = Fetcher(1000, 60, resolve)
    with running(engine, fetcher, allow_image_urls=True) as server:
        connection = start(server, [image_part("http://site.example/cat.png")])
        assert asked.wait(600)
        assert server.figures()["sightline_requests_in_flight"] == 1
        connection.close()
        assert ended.wait(600)
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 0)
        assert not any("answers_total" in figure for figure in server.figures())


def test_leaving_while_it_is_queued_leaves_no_answer_behind(letters_engine: Engine) -> None:
    """The request reaches the engine after its client has gone."""
    leave, generations = threading.Event(), []

    class Slow(Watched):
        def submit(self, request: Any, **given: Any) -> Generation:
            leave.set()
            wait_for(lambda: not server.server.server_state.connections)
            generations.append(super().submit(request, **given))
            return generations[-1]

    with running(Slow(letters_engine, lambda *_: None)) as server:  # type: ignore[arg-type]
        connection = start(server)
        assert leave.wait(600)
        connection.close()
        wait_for(lambda: bool(generations))
        assert generations[0].result(600).finish_reason == "cancelled"
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 0)


def test_leaving_the_queue_needs_no_turn(engine: Engine, flow: Flow) -> None:
    flow.hold(2)
    with running(engine) as server:
        at_work = start(server, **LONG)
        read_until(at_work, b'"content":"')
        waiting = start(server)
        read_until(waiting, b": queued")
        waiting.close()
        name = 'sightline_answers_total{reason="cancelled"}'
        wait_for(lambda: server.figures().get(name, 0) == 1)
        assert server.figures()["sightline_requests_in_flight"] == 1
        assert server.figures()["sightline_prompt_tokens_total"] == 0  # nothing of it was read
        at_work.close()
        flow.release()


def test_a_stream_tells_of_prefill_and_that_it_is_alive(engine: Engine, flow: Flow) -> None:
    flow.hold(2)
    with running(engine, keep_alive_seconds=0.05) as server:
        at_work = start(server, **LONG)
        read_until(at_work, b'"content":"')
        waiting = start(server, "words " * 150, max_tokens=2)
        data = read_until(waiting, b": still here\n\n")
        assert data.index(b": queued\n\n") < data.index(b": still here\n\n")
        assert b"data:" not in data
        at_work.close()
        flow.release()
        data = read_until(waiting, b"[DONE]")
        assert b": prefill " in data
        steps = [line for line in data.split(b"\n") if line.startswith(b": prefill")]
        processed, total = steps[-1].removeprefix(b": prefill ").split(b"/")
        assert int(processed) <= int(total)
        assert int(total) > 100
        assert data.index(steps[-1]) < data.index(b"data:")
        waiting.close()


def test_figures(engine: Engine) -> None:
    with running(engine) as server:
        for _ in range(2):
            reply = server.chat("The very same question, so that it is cached.", max_tokens=3)
        usage = reply.json["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0
        server.ask("GET", "/no/such/place/" + "x" * 50)
        text = server.ask("GET", "/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        figures = server.figures()
        assert figures["sightline_prompt_tokens_total"] == 2 * usage["prompt_tokens"]
        assert figures["sightline_cached_tokens_total"] >= cached
        assert figures["sightline_generated_tokens_total"] == 6
        assert figures["sightline_time_to_first_token_seconds_count"] == 2
        assert figures["sightline_decode_seconds_per_token_count"] == 2
        assert figures['sightline_cache_bytes{kind="conversation"}'] > 0
        assert figures["sightline_cache_max_bytes"] > 0
        route = 'route="/v1/chat/completions",status="200"'
        assert figures[f"sightline_http_requests_total{{{route}}}"] == 2
        assert figures['sightline_http_requests_total{route="other",status="404"}'] == 1
        assert "/no/such" not in text.body.decode()


# --- the end ----------------------------------------------------------------------------------


def test_stopping_lets_answers_finish(engine: Engine, flow: Flow) -> None:
    flow.hold(2)
    with running(engine, shutdown_seconds=600) as server:
        connection = start(server, max_tokens=30)
        data = read_until(connection, b'"content":"')
        waiting = start(server, max_tokens=5)
        read_until(waiting, b": queued")
        server.server.stop()
        flow.release()
        data += read_all(connection)
        assert b"[DONE]" in data
        assert b"[DONE]" in read_all(waiting)
        assert server.ended()
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_what_does_not_finish_is_cancelled_and_told_so(engine: Engine, flow: Flow) -> None:
    flow.hold(2)
    with running(engine, shutdown_seconds=0) as server:
        at_work = start(server, **LONG)
        data = read_until(at_work, b'"content":"')
        whole = start(server, stream=False)
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 2)
        server.server.stop()
        data += read_all(at_work)
        assert b"[DONE]" not in data
        assert b'data: {"error":{"message":"the server is shutting down"' in data
        assert Reply(read_all(whole)).error["code"] == "shutting_down"
        assert server.ended()


def test_what_is_cancelled_before_it_is_asked(engine: Engine, flow: Flow) -> None:
    flow.hold(1)
    stop = threading.Event()
    stop.set()
    at_work = engine.submit(Request("abc"))
    next(at_work)
    generation = engine.submit(Request("abc"), cancel=stop)
    assert generation.result(600).finish_reason == "cancelled"
    assert [type(event) for event in generation] == [Finished]
    at_work.cancel()
    flow.release()


def test_an_engine_that_is_closed_under_it(letters_folder: Any, flow: Flow) -> None:
    from engine import load

    flow.hold(2)
    engine: Any = Watched(load(letters_folder), flow.at_event)
    with running(engine) as server:
        connection = start(server, **LONG)
        data = read_until(connection, b'"content":"')
        engine.close()
        assert b'{"error":' in data + read_all(connection)
        reply = server.chat("Hello")
        assert (reply.status, reply.error["code"]) == (503, "shutting_down")
