"""Clients that send too much, too slowly, nonsense, or that do not listen."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from support.serving import Reply, Running, read_all, running
from support.waiting import wait_for

from engine import Engine
from engine.server.schemas import ChatRequest, CompletionRequest

CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)


@pytest.fixture(scope="module")
def strict(tiny_engine: Engine) -> Iterator[Running]:
    """A server with little patience."""
    limits = {
        "max_body_bytes": 200_000,
        "header_seconds": 1.0,
        "body_seconds": 1.0,
        "idle_seconds": 1.0,
        "max_connections": 12,
        "max_queue": 2,
    }
    with running(tiny_engine, model="tiny", **limits) as server:
        yield server


@pytest.fixture(scope="module")
def patient(tiny_engine: Engine) -> Iterator[Running]:
    """One that waits for whatever is under way, with small limits all the same."""
    with running(tiny_engine, model="tiny", max_body_bytes=200_000, max_queue=2) as server:
        yield server


def healthy(server: Running) -> bool:
    """Whether it answers, be it later where the machine kept us from asking within its time."""

    def answers() -> bool:
        try:
            asked = server.ask("GET", "/health"), server.chat("Hello")
        except OSError:
            return False
        return all(reply.status == 200 for reply in asked)

    wait_for(answers)
    return True


def test_a_body_too_large_is_refused_by_its_head(patient: Running) -> None:
    for size in (b"200001", b"9" * 18):
        with patient.connect() as connection:
            connection.sendall(CHAT + b"Content-Length: " + size + b"\r\n\r\n")
            reply = Reply(read_all(connection))  # nothing of the body was sent, or waited for
        assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    assert healthy(patient)


def test_a_body_that_tells_no_length_is_cut_off(patient: Running) -> None:
    piece = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    with patient.connect() as connection:
        connection.sendall(CHAT + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(piece * 2000)  # 64 MiB: more than a system holds on its way
    assert healthy(patient)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [0] * 1000},
        {"messages": [{"role": "user", "content": [0] * 1000}]},
        {"messages": [{"role": "user", "content": "x", **{f"x{i}": 0 for i in range(1000)}}]},
        {"messages": [], **{f"x{i}": 0 for i in range(1000)}},
        {"messages": [], "logit_bias": {f"x{i}": "y" for i in range(2000)}},
        {"messages": [], "stop": [0] * 1000},
        {"messages": [], "modalities": [0] * 1000},
        {"prompt": [-1] * 1000},
        {"prompt": ["", ""] * 1000},
    ],
)
def test_what_is_wrong_a_thousand_times_is_complained_about_once(body: Any) -> None:
    """Millions of complaints would fill the memory."""
    kind = CompletionRequest if "prompt" in body else ChatRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "x", **body})
    assert caught.value.error_count() < 10


def test_a_body_of_very_many_values_is_refused(tiny_server: Running) -> None:
    body = b'{"model": "tiny", "prompt": [' + b"1," * 2**20 + b"1]}"
    reply = tiny_server.ask("POST", "/v1/completions", body, {"content-type": "application/json"})
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")


def test_a_text_that_a_tokenizer_would_take_long_for_is_refused(tiny_server: Running) -> None:
    for reply in (
        tiny_server.chat("x" * 2**22 + "x"),
        tiny_server.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "x" * 2**22 + "x"}),
    ):
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
        assert "the most is 4,194,304" in reply.error["message"]  # not counted in tokens first


def test_bodies_of_waiting_requests_are_held_within_bounds(tiny_engine: Engine) -> None:
    with running(tiny_engine, max_body_bytes=1000) as server, ExitStack() as stack:
        for _ in range(10):  # eight bodies at most
            connection = stack.enter_context(server.connect())
            connection.sendall(CHAT + b"Content-Length: 1000\r\n\r\n" + b" " * 999)
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 8)
        reply = server.chat("x" * 100)
        assert (reply.status, reply.error["code"]) == (429, "queue_full")
        stack.close()
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 0)
        assert healthy(server)


def test_a_body_of_exactly_the_limit_is_read(patient: Running) -> None:
    body = b'{"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}'
    for extra, status in ((0, 200), (1, 413)):
        padded = body + b" " * (200_000 - len(body) + extra)
        headers = {"content-type": "application/json"}
        assert patient.ask("POST", "/v1/chat/completions", padded, headers).status == status


def trickle(connection: socket.socket, start: bytes, piece: bytes, seconds: float) -> float:
    """Send `piece` again and again; after how many seconds the server had enough."""
    began = time.monotonic()
    connection.sendall(start)
    connection.settimeout(0.05)
    while time.monotonic() - began < seconds:
        try:
            connection.sendall(piece)
            if connection.recv(1000) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),  # says nothing
        (b"", b"\r\n"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
        (b"GET /hea", b""),
        (CHAT + b"Content-Length: 100000\r\n\r\n", b" "),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /"),  # after a good one
        # Bodies that nobody reads, their requests being answered already.
        (CHAT.replace(b"/v1/", b"/no/") + b"Content-Length: 100000\r\n\r\n", b" "),
        (CHAT.replace(b"POST", b"PUT") + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
)
def test_slow_loris(strict: Running, start: bytes, piece: bytes) -> None:
    with strict.connect() as connection:
        assert trickle(connection, start, piece, seconds=600) < 600
    assert healthy(strict)


def test_a_body_too_slow_is_told_so(strict: Running) -> None:
    with strict.connect() as connection:
        connection.sendall(CHAT + b'Content-Length: 100\r\n\r\n{"model"')
        reply = Reply(read_all(connection))
    assert (reply.status, reply.error["code"]) == (408, "body_timeout")


def test_many_silent_connections_lock_nobody_out_for_long(strict: Running) -> None:
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(strict.connect())
        assert healthy(strict)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
        CHAT + b"Content-Length: -1\r\n\r\n",
        CHAT + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        CHAT + b"Content-Length: 0x10\r\n\r\n",
        CHAT + b"Transfer-Encoding: gzip\r\n\r\n",
        CHAT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_nonsense_is_refused(strict: Running, nonsense: bytes) -> None:
    with strict.connect() as connection:
        with suppress(OSError):
            connection.sendall(nonsense)
        reply = Reply(read_all(connection))
    assert reply.status in (0, 400, 403, 408, 501), reply.body
    if reply.status:
        assert reply.error["message"]
    assert healthy(strict)


def test_smuggled_requests_are_one_or_none(patient: Running) -> None:
    """Two lengths, of which a proxy might believe the other."""
    inner = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(inner))
    with patient.connect() as connection:
        connection.sendall(CHAT + head + inner)
        data = read_all(connection)
    assert Reply(data).error["code"] == "invalid_http"
    assert data.count(b"HTTP/1.1 ") == 1


def test_a_reader_that_does_not_read_is_left(tiny_engine: Engine) -> None:
    """Its answer ends, its connection too, and the next one is served."""
    body = (
        b'{"model": "demo", "max_tokens": 400, "stream": true, "logprobs": true, "top_logprobs": 20'
        b', "logit_bias": {"2": -100}, "messages": [{"role": "user", "content": "x"}]}'
    )
    with running(tiny_engine, send_seconds=0.3, send_buffer=4096) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(CHAT + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert connection.recv(1)  # its answer is under way
            wait_for(lambda: not server.server.server_state.connections)
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 0)
        assert server.chat("Hello").status == 200


PAGE = b"GET /page/page.css HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("close", [b"", b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"])
def test_a_reader_of_nothing_holds_no_connection(tiny_engine: Engine, close: bytes) -> None:
    """Whole responses too: what waits to be read keeps neither a task nor a connection."""
    with running(tiny_engine, send_seconds=0.3, send_buffer=4096) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(PAGE * 20 + close)
            assert connection.recv(1)
            state = server.server.server_state
            wait_for(lambda: not state.connections and not state.tasks)
        assert healthy(server)


def test_a_slow_reader_gets_all_of_it(tiny_engine: Engine) -> None:
    """It takes longer than the server waits for one that does not read."""
    seconds = 1.0
    with running(tiny_engine, send_seconds=seconds, send_buffer=4096) as server:
        for _ in range(60):
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(
                    PAGE * 99 + PAGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                )
                got, times = b"", [time.monotonic()]
                with suppress(ConnectionError):
                    while piece := connection.recv(20_000):
                        got += piece
                        times.append(time.monotonic())
                        time.sleep(0.01)
            # A machine that had no time for us for so long: that was no slow reader, but none.
            if max(b - a for a, b in pairwise(times)) < seconds / 2:
                break
        assert times[-1] - times[0] > seconds
        assert got.count(b"HTTP/1.1 200 OK") == 100
        assert got.endswith(server.ask("GET", "/page/page.css").body)


def test_nothing_that_is_asked_is_logged(
    tiny_server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for more in ({}, {"n": 2}, {"stream": True}, {"logit_bias": {"99999": 1}}, {"stop": 5}):
        tiny_server.chat("rhubarb " * 3, **more)
    tiny_server.chat("rhubarb " * 9000)
    tiny_server.ask("GET", "/rhubarb")
    assert "rhubarb" not in caplog.text


def test_leaving_in_the_middle_of_a_body_frees_the_place(strict: Running) -> None:
    for _ in range(6):
        with strict.connect() as connection:
            connection.sendall(CHAT + b"Content-Length: 1000\r\n\r\n{")
    wait_for(lambda: strict.figures()["sightline_requests_in_flight"] == 0)
    assert healthy(strict)
