"""Ask a server many things over several connections, leaving some answers in the middle.

    python scripts/soak_server.py [--model MODEL] [--requests 2000] [--connections 16]

Starts `sightline serve`, and prints what was asked, how it ended, and the server's memory. Fails
unless every request that was waited for ended exactly once, the server counts as many answers as
were asked of it, nothing is left under way, and its memory is flat after the first third.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROWTH_ALLOWED = 0.05
"""How much larger than in its second third the server may be in its last."""

TOPICS = ("rivers", "lighthouses", "a long winter", "bread", "the moon", "trains")


class Left(Exception):
    """This request was to be left at this point."""


class Soak:
    """Requests against one server. `counts` tells how they ended."""

    def __init__(self, port: int, model: str, seed: int, note: Callable[[int], None]) -> None:
        self.port, self.model = port, model
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._note, self._done, self._left = note, 0, 0

    async def run(self, requests: int, connections: int) -> None:
        self._left = requests
        await asyncio.gather(*(self._one_connection() for _ in range(connections)))

    async def _one_connection(self) -> None:
        streams = None
        while self._left > 0:
            self._left -= 1
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                await self._ask(*streams)
                self.counts["ended"] += 1
            except Left:
                streams[1].transport.abort()
                streams = None
                self.counts["left"] += 1
            self._done += 1
            self._note(self._done)
        if streams is not None:
            streams[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path, body = self._request()
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        ).encode()
        leave = self.random.choice(["never"] * 6 + ["in body", "at once", "in answer", "in answer"])
        if leave == "in body":
            self.counts["left in body"] += 1
            writer.write(head + data[: len(data) // 2])
            await writer.drain()
            raise Left
        writer.write(head + data)
        await writer.drain()
        self.counts["asked"] += 1
        if leave == "at once":
            await asyncio.sleep(self.random.random() * 0.01)
            raise Left
        answer_head = await reader.readuntil(b"\r\n\r\n")
        assert answer_head.startswith(b"HTTP/1.1 200"), answer_head + await reader.read(1000)
        if leave == "in answer":
            await reader.read(self.random.randrange(1, 2000))
            raise Left
        if not body["stream"]:
            length = re.search(rb"content-length: (\d+)", answer_head)
            assert length is not None
            whole = json.loads(await reader.readexactly(int(length[1])))
            reasons = [choice["finish_reason"] for choice in whole["choices"]]
        else:
            stream = await reader.readuntil(b"\r\n0\r\n\r\n")
            assert stream.count(b"data: [DONE]") == 1, stream
            reasons = [r.decode() for r in re.findall(rb'"finish_reason":"(\w+)"', stream)]
        assert len(reasons) == 1, reasons
        self.counts[reasons[0]] += 1

    def _request(self) -> tuple[str, dict[str, Any]]:
        draw = self.random
        text = f"Tell me about {draw.choice(TOPICS)}, and then about {draw.choice(TOPICS)}."
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": draw.randrange(1, 25),
            "stream": draw.random() < 0.7,
            "temperature": draw.choice([0, 1]),
        }
        if draw.random() < 0.2:
            return "/v1/completions", body | {"prompt": text}
        messages = [{"role": "user", "content": text}]
        if draw.random() < 0.5:
            messages += [
                {"role": "assistant", "content": "Gladly."},
                {"role": "user", "content": f"And {draw.choice(TOPICS)}?"},
            ]
        return "/v1/chat/completions", body | {"messages": messages}


async def figures(port: int) -> dict[str, float]:
    """What /metrics tells, by name and labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2].decode()
    writer.close()
    lines = [line for line in body.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines)}


async def settled(port: int, seconds: float = 30) -> dict[str, float]:
    """The figures as soon as nothing is under way any more."""
    deadline = time.monotonic() + seconds
    while (told := await figures(port))["sightline_requests_in_flight"]:
        assert time.monotonic() < deadline, "requests are left under way"
        await asyncio.sleep(0.05)
    return told


def answers(told: dict[str, float]) -> int:
    return int(sum(n for name, n in told.items() if name.startswith("sightline_answers_total")))


def resident(pid: int) -> float:
    """MB of memory that a process holds (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    command = [sys.executable, "-m", "engine", "serve", "--model", args.model, "--port", "0"]
    # A small prompt cache, so that it is full long before the end.
    command += ["--cache-bytes", str(16 * 2**20)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        port = int(found[1])
        memory: list[float] = []

        def note(done: int) -> None:
            if done % max(1, args.requests // 60) == 0:
                memory.append(resident(server.pid))
                print(f"\r{done} done, {memory[-1]:.0f} MB ", end="", flush=True)

        began = time.monotonic()
        soak = Soak(port, args.model, args.seed, note)
        asyncio.run(soak.run(args.requests, args.connections))
        told = asyncio.run(settled(port))
        seconds = time.monotonic() - began
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    third = len(memory) // 3
    before, after = (max(memory[i * third : (i + 1) * third]) for i in (1, 2))
    print(f"\n{dict(soak.counts)} in {seconds:.0f} s; memory {before:.0f} MB, then {after:.0f} MB")
    print({name: n for name, n in told.items() if name.startswith("sightline_answers_total")})
    assert soak.counts["ended"] + soak.counts["left"] == args.requests
    # One that is left at once may be gone before it is a request.
    assert soak.counts["ended"] <= answers(told) <= soak.counts["asked"]
    assert after <= before * (1 + GROWTH_ALLOWED), "the server grew"
    assert server.returncode == 0, server.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
