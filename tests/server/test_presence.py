"""A client that closes its side after a whole request is answered, and one that leaves is not."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.serving import Reply, Running, read_all, running
from support.waiting import wait_for
from test_queue import read_until

from engine import Engine, Generation
from engine.server import presence

CANCELLED = 'sightline_answers_total{reason="cancelled"}'


@pytest.fixture
def server(letters: Engine) -> Iterator[Running]:
    with running(letters) as server:
        yield server


def request(version: str = "1.1", **more: Any) -> bytes:
    body = {"model": "demo", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    data = json.dumps({**body, **more}).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@contextmanager
def half_closed(server: Running, data: bytes) -> Iterator[socket.socket]:
    with server.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        yield connection


@contextmanager
def busy(engine: Engine) -> Iterator[None]:
    """No request has its turn until the block ends."""
    done = threading.Event()
    engine._worker.call(lambda _: done.wait())
    try:
        yield
    finally:
        done.set()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
def test_it_is_answered(server: Running, version: str, stream: bool) -> None:
    with half_closed(server, request(version, stream=stream)) as connection:
        reply = Reply(read_all(connection))
    assert reply.status == 200
    if stream:
        assert reply.body.rstrip().endswith(b"data: [DONE]")
    else:
        assert reply.json["usage"]["completion_tokens"] == 5


def test_so_are_other_requests_and_wrong_ones(server: Running) -> None:
    with half_closed(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert Reply(read_all(connection)).json == {"status": "ok"}
    with half_closed(server, request(temperature=-1)) as connection:
        assert Reply(read_all(connection)).error["param"] == "temperature"


def test_half_a_request_is_not(server: Running) -> None:
    for part in (request()[:-1], request()[:30]):
        with half_closed(server, part) as connection:
            assert read_all(connection) == b""


def test_two_requests_at_once_are_both_answered(server: Running) -> None:
    with half_closed(server, request() + request(max_tokens=7)) as connection:
        data = read_all(connection)
    replies = [Reply(b"HTTP/1.1 200" + part) for part in data.split(b"HTTP/1.1 200")[1:]]
    assert [reply.json["usage"]["completion_tokens"] for reply in replies] == [5, 7]


@pytest.mark.parametrize("stream", [False, True])
def test_whatever_asks_whether_it_is_there_is_part_of_the_answer(
    letters: Engine, server: Running, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "FIRST_LOOK", 0.001)
    monkeypatch.setattr(presence, "LATER", 1)
    with half_closed(server, request(stream=stream)) as connection:
        with busy(letters):
            # All nine bytes and no more, or comments.
            data = read_until(connection, b"still here\n\n" if stream else b"HTTP/1.1 ")
        data += read_all(connection)
    reply = Reply(data)
    assert reply.status == 200
    if stream:
        lines = [line for line in reply.body.decode().split("\n") if line]
        assert lines[-1] == "data: [DONE]"
        assert ": still here" in lines
        assert all(line.startswith((":", "data: ")) for line in lines)
    else:
        assert reply.json["usage"]["completion_tokens"] == 5
        assert len(data) == data.index(b"\r\n\r\n") + 4 + int(reply.headers["content-length"])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", ["its side", "all of it"])
def test_leaving_cancels(
    letters: Engine, server: Running, version: str, stream: bool, first: str
) -> None:
    with busy(letters):
        connection = server.connect()
        connection.sendall(request(version, stream=stream))
        if stream:
            read_until(connection, b": queued")
        wait_for(lambda: any(isinstance(job, Generation) for job in letters._worker._waiting))
        if first == "its side":
            connection.shutdown(socket.SHUT_WR)
            read_until(connection, b": still here" if stream else b"H")  # it is waited for
            assert server.figures().get(CANCELLED, 0) == 0
        connection.close()
        wait_for(lambda: server.figures().get(CANCELLED, 0) == 1)
        wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 0)
