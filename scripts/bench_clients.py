"""Answers to as many clients of the HTTP server, against the engine's own route to the same.

    python scripts/bench.py clients

`figures` serves an engine of this process; run as a program, this file is the clients.
"""

import asyncio
import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench_together import Figure, Run, Sizes

    from engine import Engine, Request

MODEL = "bench"
FIRST_BAR, BAR = 0.90, 0.95
"""What the engine's own route takes, at least, over the server's: to the first token of all, and to
their last."""


def figures(folder: Path, rounds: int, sizes: "Sizes | None" = None) -> "Iterator[Figure]":
    """A name, our route's time over the server's, the bar, a line and all figures."""
    from bench_together import Asker, Pair, row, usual_sizes

    from engine import load

    sizes = sizes or usual_sizes()
    counts = sorted({1, sizes.counts[-1] // 2, sizes.counts[-1]})
    with load(folder, parallel=counts[-1]) as engine, _served(engine) as ask:
        direct = partial(_direct, engine)
        for pictures in (False, True)[: 1 if engine.report.add_on is None else 2]:
            asker = Asker(engine, sizes, pictures)
            what = "half with pictures" if pictures else "texts"
            for count in counts:
                pairs = []
                for i in range(rounds + 1):
                    found = {}
                    for route in (ask, direct)[:: 1 if i % 2 else -1]:
                        found[route] = route(asker.requests(count))
                    pairs.append(Pair(ours=found[ask], theirs=found[direct]))
                name = f"{count} {what} by HTTP"
                yield row(f"{name}: first", pairs[1:], "last_first", FIRST_BAR)
                yield row(f"{name}: total", pairs[1:], "total", BAR)


def _direct(engine: "Engine", asked: "Sequence[Request]") -> "Run":
    """The engine's own route; only tokens that make some text ready are counted, as by HTTP."""
    from bench_together import run_of

    stamps: list[list[float]] = [[] for _ in asked]

    def note(own: list[float]) -> Any:
        return lambda event: event.text and own.append(time.perf_counter())

    started = time.perf_counter()
    begun = [engine.submit(r, on_event=note(own)) for r, own in zip(asked, stamps, strict=True)]
    for generation in begun:
        generation.result()
    return run_of(started, stamps)


@contextmanager
def _served(engine: "Engine") -> Iterator[Any]:
    """What asks the server of an engine several things at once, from another process."""
    from bench_together import run_of

    from engine.server import Settings
    from engine.server.run import Server, listen

    started = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        server = Server(engine, Settings(model=MODEL), listener, started.set)
        thread = threading.Thread(target=server.serve_until_stopped)
        thread.start()
        started.wait()
        command = [sys.executable, __file__, str(listener.getsockname()[1])]
        pipe = subprocess.PIPE
        try:
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as clients:

                def ask(asked: "Sequence[Request]") -> "Run":
                    assert clients.stdin is not None
                    assert clients.stdout is not None
                    print(json.dumps([_body(r) for r in asked]), file=clients.stdin, flush=True)
                    began, stamps = json.loads(clients.stdout.readline())
                    return run_of(began, stamps)

                yield ask
                clients.stdin.close()  # type: ignore[union-attr]
        finally:
            server.stop()
            thread.join()


def _body(request: "Request") -> dict[str, Any]:
    (message,) = request.prompt
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _data(image)}} for image in request.images
    ]
    content.append({"type": "text", "text": message["content"]})
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": request.options.max_tokens,
        "stream": True,
    }


def _data(image: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(image).decode()


async def _client(port: int, data: bytes) -> list[float]:
    """When each piece of an answer was read; the clocks of two processes are one, the machine's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    times, said = [], b""
    async for line in reader:
        if line.startswith(b"data: {"):
            said = line
            (choice,) = json.loads(line[6:])["choices"]
            if choice["delta"].get("content"):
                times.append(time.perf_counter())
    writer.close()
    assert len(times) > 1, said
    return times


async def _clients(port: int, bodies: Sequence[Any]) -> tuple[float, list[list[float]]]:
    whole = [json.dumps(body).encode() for body in bodies]
    began = time.perf_counter()
    return began, await asyncio.gather(*(_client(port, data) for data in whole))


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_clients(int(sys.argv[1]), json.loads(line)))), flush=True)
