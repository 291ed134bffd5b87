"""Ask a server many things over several connections, leaving some answers in the middle.

    python scripts/soak_server.py [--model MODEL] [--requests 2000] [--connections 16] [--bursts 4]

Starts `sightline serve`, and prints what was asked, how it ended, and the server's memory. Between
shares of these requests come bursts: on every connection a conversation is begun and then, on all
of them at once, continued. Fails unless every request that was waited for ended exactly once, the
server counts as many answers as were asked of it, nothing is left under way, its memory is flat
after the first third, and the follow-ups of the bursts wait for hardly more than their turns.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROWTH_ALLOWED = 0.05
"""How much larger than in its second third the server may be in its last."""

WAIT_ALLOWED = 1.1
"""The median wait of a queued follow-up for its first token, over its turn; see `waits`."""

TOPICS = ("rivers", "lighthouses", "a long winter", "bread", "the moon", "trains")


class Left(Exception):
    """This request was to be left at this point."""


@dataclass
class FollowUp:
    """A follow-up as its client saw it, and the work that the server says it was. In seconds."""

    sent: float
    first: float
    """When its first text was there."""
    prefill: float
    work: float
    """From the start of its prefill to its last token."""
    cached: int


def waits(burst: list[FollowUp]) -> list[tuple[float, float]]:
    """Of each follow-up that had others ahead of it: its wait for the first text, and its turn.

    Its turn is the work of those that were answered before it, from when it was sent on, and its
    own prefill: how soon its first token could be there if the queue, HTTP and whatever else lies
    between two answers took no time at all.
    """
    found, free = [], 0.0
    for i, one in enumerate(sorted(burst, key=lambda one: one.first)):
        begun = max(free, one.sent)
        free = begun + one.work
        if i:
            found.append((one.first - one.sent, begun + one.prefill - one.sent))
    return found


class Soak:
    """Requests against one server. `counts` tells how they ended."""

    def __init__(self, port: int, model: str, seed: int, note: Callable[[int], None]) -> None:
        self.port, self.model = port, model
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.firsts: list[float] = []
        """Of each streamed answer that was not left, the seconds to its first text."""
        self._note, self._done, self._left = note, 0, 0

    async def run(self, requests: int, connections: int) -> None:
        self._left = requests
        await asyncio.gather(*(self._one_connection() for _ in range(connections)))

    async def burst(self, connections: int) -> list[FollowUp]:
        """A conversation on each connection, and then a follow-up on all of them at once."""
        # A first message of its own each, so that none finds another's prompt in the cache.
        openings = [f"{self.random.random()}. {self._question()}" for _ in range(connections)]
        begun = [[{"role": "user", "content": text}] for text in openings]
        answers = await asyncio.gather(*(self._follow(messages, 8) for messages in begun))
        for messages, (text, _) in zip(begun, answers, strict=True):
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "user", "content": f"And {self.random.choice(TOPICS)}?"})
        answers = await asyncio.gather(*(self._follow(messages, 16) for messages in begun))
        self.counts["in bursts"] += 2 * connections
        return [follow_up for _, follow_up in answers]

    async def _follow(self, messages: list[dict[str, str]], most: int) -> tuple[str, FollowUp]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = {"model": self.model, "messages": messages, "max_tokens": most, "stream": True}
        sent, first, text = time.perf_counter(), 0.0, ""  # before anybody can begin with it
        writer.write(_post("/v1/chat/completions", body | {"stream_options": _USAGE}))
        while (line := await reader.readline()) != b"data: [DONE]\n":
            assert line, "the connection was closed"
            if not line.startswith(b"data: "):
                continue
            chunk = json.loads(line[6:])
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                ended = choice["finish_reason"] == "stop"
            if text and not first:
                first = time.perf_counter()
            usage = chunk["usage"]
        writer.close()
        told = usage["sightline"]
        # The token that ended the text was decoded too, and is not counted as the answer's.
        decoded = (usage["completion_tokens"] + ended - 1) / (told["tokens_per_second"] or 1)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        prefill = told["prefill_seconds"]
        return text, FollowUp(sent, first, prefill, prefill + decoded, cached)

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
        data = _post(path, body)
        leave = self.random.choice(["never"] * 6 + ["in body", "at once", "in answer", "in answer"])
        if leave == "in body":
            self.counts["left in body"] += 1
            writer.write(data[: -len(json.dumps(body)) // 2])
            await writer.drain()
            raise Left
        writer.write(data)
        sent = time.perf_counter()
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
            stream = b""
            while not _TEXT.search(stream) and b"[DONE]" not in stream:
                stream += await reader.readline()
            self.firsts.append(time.perf_counter() - sent)
            stream += await reader.readuntil(b"\r\n0\r\n\r\n")
            assert stream.count(b"data: [DONE]") == 1, stream
            reasons = [r.decode() for r in re.findall(rb'"finish_reason":"(\w+)"', stream)]
        assert len(reasons) == 1, reasons
        self.counts[reasons[0]] += 1

    def _request(self) -> tuple[str, dict[str, Any]]:
        draw = self.random
        text = self._question()
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

    def _question(self) -> str:
        one, other = self.random.choices(TOPICS, k=2)
        return f"Tell me about {one}, and then about {other}."


_USAGE = {"include_usage": True}
_TEXT = re.compile(rb'"(content|text)":"[^"]')


def _post(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


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


def address(lines: Iterable[str]) -> str:
    """Where a server says that it is; raises SystemExit if it ends without a word of that."""
    for line in lines:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise SystemExit("the server did not start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--bursts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    command = [sys.executable, "-m", "engine", "serve", "--model", args.model, "--port", "0"]
    # A prompt cache for the conversations of a burst, which is full long before the end.
    command += ["--cache-bytes", str(128 * 2**20)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        port = int(address(server.stderr).rpartition(":")[2])
        memory: list[float] = []

        def note(done: int) -> None:
            if done % max(1, args.requests // 60) == 0:
                memory.append(resident(server.pid))
                print(f"\r{done} done, {memory[-1]:.0f} MB ", end="", flush=True)

        began = time.monotonic()
        folder = Path(args.model)
        name = folder.resolve().name if folder.is_dir() else args.model
        soak = Soak(port, name, args.seed, note)
        waited: list[tuple[float, float]] = []
        for i in range(args.bursts + 1):
            share = args.requests * (i + 1) // (args.bursts + 1)
            share -= args.requests * i // (args.bursts + 1)
            asyncio.run(soak.run(share, args.connections))
            asyncio.run(settled(port))
            if i < args.bursts:
                waited += waits(asyncio.run(soak.burst(args.connections)))
        told = asyncio.run(settled(port))
        seconds = time.monotonic() - began
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    third = len(memory) // 3
    before, after = (max(memory[i * third : (i + 1) * third], default=0) for i in (1, 2))
    print(f"\n{dict(soak.counts)} in {seconds:.0f} s; memory {before:.0f} MB, then {after:.0f} MB")
    if firsts := sorted(soak.firsts):
        p95 = firsts[int(0.95 * len(firsts))]
        print(
            f"first text of {len(firsts)} streamed answers: median "
            f"{statistics.median(firsts):.3f} s, 95% within {p95:.3f} s"
        )
    factors = sorted(wait / turn for wait, turn in waited)
    if factors:
        median, high = statistics.median(factors), factors[int(0.95 * len(factors))]
        longest = max(wait for wait, _ in waited)
        print(
            f"wait / turn of {len(factors)} queued follow-ups: median {median:.3f}, 95% within "
            f"{high:.3f}, all within {factors[-1]:.3f}; waits of up to {longest:.2f} s"
        )
    print({name: n for name, n in told.items() if name.startswith("sightline_answers_total")})
    assert soak.counts["ended"] + soak.counts["left"] == args.requests
    # One that is left at once may be gone before it is a request.
    ended = answers(told) - soak.counts["in bursts"]
    assert soak.counts["ended"] <= ended <= soak.counts["asked"]
    assert after <= before * (1 + GROWTH_ALLOWED), "the server grew"
    assert server.returncode == 0, server.returncode
    assert not factors or median <= WAIT_ALLOWED, "follow-ups waited for more than their turns"
    return 0


if __name__ == "__main__":
    sys.exit(main())
