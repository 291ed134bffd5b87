"""What the HTTP server adds to each token, for a client that is a process of its own.

    python scripts/bench.py server

`rows` serves an engine of this process; run as a program, this file is the client.
"""

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

TOKENS = 32
MESSAGES = [{"role": "user", "content": "Tell me about rivers, and then about bread."}]


class Emitting:
    """An engine that notes when it gives out each piece of text, before it tells anybody."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.times: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: Any, **given: Any) -> Any:
        self.times, noting = [], threading.Event()
        self._engine._worker.call(lambda _: noting.wait())  # before the first token
        generation = self._engine.submit(request, **given)
        emit = generation.emit

        def noted(event: Any) -> None:
            if event.text:
                self.times.append(time.perf_counter())
            emit(event)

        generation.emit = noted
        noting.set()
        return generation


def rows(engine: Any, rounds: int) -> Iterator[dict[str, float]]:
    """Each round: how long after it was given out a piece of text is read, in seconds: by a thread
    of the engine's own process (`alone`), and by another process (`through` the server).

    Medians over an answer. The clocks of two processes are one: the machine's.
    """
    from engine import GenerationOptions
    from engine.server import Settings
    from engine.server.run import Server, listen

    bias = dict.fromkeys(engine.tokenize("<|im_end|>"), -100.0)  # all run to the end
    options = GenerationOptions(max_tokens=TOKENS, logit_bias=bias)
    body = {"model": "bench", "messages": MESSAGES, "max_tokens": TOKENS, "stream": True}
    body["logit_bias"] = {str(token): value for token, value in bias.items()}
    emitting, started = Emitting(engine), threading.Event()
    with listen("127.0.0.1", 0) as listener:
        server = Server(emitting, Settings(model="bench"), listener, started.set)  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_until_stopped)
        thread.start()
        started.wait()
        try:
            yield from _rounds(emitting, options, body, listener.getsockname()[1], rounds)
        finally:
            server.stop()
            thread.join()


def _rounds(
    emitting: Emitting, options: Any, body: Any, port: int, rounds: int
) -> Iterator[dict[str, float]]:
    from engine import Request

    command, pipe = [sys.executable, __file__, str(port)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as client:

        def alone() -> list[float]:
            events = emitting.submit(Request(MESSAGES, options=options))
            return [time.perf_counter() for event in events if event.text]

        def through() -> list[float]:
            assert client.stdin is not None
            assert client.stdout is not None
            print(json.dumps(body), file=client.stdin, flush=True)
            return list(json.loads(client.stdout.readline()))

        def lateness(read: Callable[[], list[float]]) -> float:
            late = [a - b for a, b in zip(read(), emitting.times, strict=True)]
            assert len(late) > TOKENS // 2
            return statistics.median(late)

        sides = {"alone": alone, "through": through}
        for i in range(rounds + 1):
            names = list(sides)[:: 1 if i % 2 else -1]
            found = {name: lateness(sides[name]) for name in names}
            if i:  # the first only warms up
                yield found


def _client(port: int) -> None:
    """Send each line of the input as a request; print when each piece of its answer was read."""
    for line in sys.stdin:
        data = line.encode()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(data), data)
            )
            times: list[float] = []
            stream = connection.makefile("rb")
            for said in stream:
                if said.startswith(b"data: {") and json.loads(said[6:])["choices"][0]["delta"].get(
                    "content"
                ):
                    times.append(time.perf_counter())
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    _client(int(sys.argv[1]))
