"""A real server on a free loopback port, in a thread, and plain sockets to talk to it."""

import asyncio
import base64
import json
import re
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from PIL import Image

from engine import Engine, Finished, Generation, TextDelta
from engine.events import Event
from engine.server import Settings
from engine.server.fetch import Fetcher
from engine.server.run import Server, listen
from support.waiting import wait_for


def run_async(work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns, run on a thread of its own: a browser test may hold this one's loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


class Running:
    """A server at work. `port` is where."""

    def __init__(self, server: Server, port: int, thread: threading.Thread) -> None:
        self.server, self.port, self._thread = server, port, thread
        self.url = f"http://127.0.0.1:{port}"
        self.model = server.app.state.service.settings.model

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(600)
        assert not self._thread.is_alive(), "the server did not end"

    def ended(self, timeout: float = 600) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def connect(self, timeout: float = 600) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> "Reply":
        """One request on a connection of its own; `body` is bytes, or anything for JSON."""
        given = {"host": f"127.0.0.1:{self.port}", "connection": "close", **(headers or {})}
        data = body if isinstance(body, bytes) else b""
        if body is not None and not isinstance(body, bytes):
            data = json.dumps(body).encode()
            given.setdefault("content-type", "application/json")
        if body is not None:
            given.setdefault("content-length", str(len(data)))
        head = "".join(f"{k}: {v}\r\n" for k, v in given.items() if v is not None)
        with self.connect() as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data)
            return Reply(read_all(connection))

    def chat(self, content: Any, headers: dict[str, str] | None = None, **more: Any) -> "Reply":
        body = {"model": self.model, "max_tokens": 2, **more}
        body["messages"] = [{"role": "user", "content": content}]
        return self.ask("POST", "/v1/chat/completions", body, headers)

    def figures(self) -> dict[str, float]:
        """What /metrics tells, by name and labels."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return {k: float(v) for k, _, v in (x.rpartition(" ") for x in lines if x[0] != "#")}


class Reply:
    """A response, read from the bytes that came."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1]) if first else 0
        pairs = (line.partition(": ") for line in lines)
        self.headers = {name.lower(): value for name, _, value in pairs}
        if self.headers.get("transfer-encoding") == "chunked":
            self.body = _unchunked(self.body)
        elif "content-length" in self.headers:
            self.body = self.body[: int(self.headers["content-length"])]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, having checked that it has OpenAI's form and tells no secrets."""
        body = self.json
        assert set(body) == {"error"}, body
        assert set(body["error"]) == {"message", "type", "param", "code"}, body
        text = self.body.decode()
        assert not re.search(r"Traceback|/root|/home|/work|/tmp|\.py\b|\b0x[0-9a-f]{6}", text), text
        assert self.headers["content-type"] == "application/json"
        return dict(body["error"])


def _unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole, data = whole + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return whole


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the server's end; a reset ends it too."""
    data = b""
    try:
        while piece := connection.recv(2**16):
            data += piece
    except ConnectionResetError:
        pass
    return data


@contextmanager
def running(engine: Engine, fetcher: Fetcher | None = None, **settings: Any) -> Iterator[Running]:
    """A server for `engine`, which stays open; `send_buffer` is the system's, in bytes."""
    settings.setdefault("model", "demo")
    send_buffer = settings.pop("send_buffer", None)
    started = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server(engine, Settings(**settings), listener, started.set, fetcher)
        thread = threading.Thread(target=server.serve_until_stopped, daemon=True)
        thread.start()
        assert started.wait(600)
        server_at_work = Running(server, port, thread)
        try:
            yield server_at_work
        finally:
            server_at_work.stop()


class Watched:
    """An engine at whose events something can be done, on its own thread.

    `at_event` is told the answer, an event that was just delivered, and how many tokens there are.
    """

    def __init__(self, engine: Engine, at_event: Callable[[Generation, Event, int], None]) -> None:
        self._engine, self._at_event = engine, at_event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: Any, **given: Any) -> Generation:
        made: Future[Generation] = Future()
        here, early = threading.get_ident(), []
        tokens = 0

        def on_event(event: Event) -> None:
            nonlocal tokens
            if threading.get_ident() == here and not made.done():
                early.append(event)  # what is cancelled already ends within `submit`
                return
            generation = made.result(600)
            generation._deliver(event)
            tokens += isinstance(event, TextDelta) and event.token is not None
            self._at_event(generation, event, tokens)

        generation = self._engine.submit(request, on_event=on_event, **given)
        made.set_result(generation)
        if early:
            assert generation._events.get_nowait() is None  # the end of those that follow
            for event in early:
                on_event(event)
            generation._deliver(None)
        return generation


class Flow:
    """How far the answers of a watched engine may go, so that a test can look at one midway."""

    def __init__(self) -> None:
        self._tokens: int | None = None
        self.ended: list[Generation] = []
        """The answers in the order in which the engine ended them."""

    def hold(self, tokens: int) -> None:
        """Have every answer wait after so many tokens; after none, once some of it was read."""
        self._tokens = tokens

    def release(self) -> None:
        self._tokens = None

    def order(self, count: int) -> list[int]:
        """The `max_tokens` of the first so many answers that ended, in that order."""
        wait_for(lambda: len(self.ended) >= count)
        return [generation.options.max_tokens for generation in self.ended[:count]]

    def at_event(self, generation: Generation, event: Event, tokens: int) -> None:
        if isinstance(event, Finished):
            self.ended.append(generation)
        else:
            wait_for(lambda: generation.cancelled or self._tokens is None or tokens < self._tokens)


def encoded(size: tuple[int, int] = (40, 30), kind: str = "PNG", colour: str = "red") -> bytes:
    """A picture of one colour, as a file."""
    data = BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


def data_uri(picture: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def image_part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}
