"""Ask a server a few prompts again and again, beside a conversation, and watch its memory.

    python scripts/soak_prompts.py [--model MODEL] [--requests 500] [--prompts 7] [--temperature 1]

Starts `sightline serve` with its defaults, and prints the server's memory and what it keeps. Fails
unless both are flat once each prompt has been asked a few times, and the conversation's follow-ups,
among the others' requests, read nothing again that was said before.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from soak_server import address, resident

WARM_UP = 10
"""Times that each prompt is asked before memory has to be flat."""

GROWTH_ALLOWED = 0.05
"""How much larger than after the warm-up the server may be at the end."""

TOPICS = ("rivers", "lighthouses", "a long winter", "bread", "the moon", "trains", "gardens")


def ask(url: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The answer to a chat request, and its usage."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), head)
    with urllib.request.urlopen(request) as reply:
        whole = json.load(reply)
    return whole["choices"][0]["message"]["content"], whole["usage"]


def kept(url: str) -> dict[str, int]:
    """How much is kept, of each kind."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        told = reply.read().decode()
    found = re.findall(r'^sightline_cache_(\w+)\{kind="(\w+)"\} (\S+)', told, re.MULTILINE)
    return {f"{name} of {kind}": int(float(n)) for name, kind, n in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=7, help=f"{len(TOPICS)} at most")
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    command = [sys.executable, "-m", "engine", "serve", "--model", args.model, "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url, folder = address(server.stderr), Path(args.model)
        name = folder.resolve().name if folder.is_dir() else args.model
        body: dict[str, Any] = {"model": name, "max_tokens": 24, "temperature": args.temperature}
        said: list[dict[str, str]] = []
        before, memory, told = 0, [], {}
        for i in range(args.requests):
            text = f"Tell me about {TOPICS[i % args.prompts]}, in a few words."
            ask(url, body | {"messages": [{"role": "user", "content": text}]})
            if i % 50 == 49:
                said.append({"role": "user", "content": f"Question {i}: and then?"})
                answer, usage = ask(url, body | {"messages": said, "temperature": 0})
                said.append({"role": "assistant", "content": answer})
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                assert cached >= before, f"{cached} of {before} tokens were warm"
                before = usage["prompt_tokens"]
            if i % 25 == 24 or i == args.requests - 1:
                memory.append(resident(server.pid))
                told = kept(url)
                print(f"{i + 1} asked: {memory[-1]:.0f} MB; {told}", flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    warm = memory[min(len(memory) - 1, WARM_UP * args.prompts // 25)]
    growth = memory[-1] / warm - 1
    print(f"{warm:.0f} MB when warm, {memory[-1]:.0f} MB at the end: {growth:+.1%}")
    assert growth <= GROWTH_ALLOWED, "the server grew"
    return 0


if __name__ == "__main__":
    sys.exit(main())
