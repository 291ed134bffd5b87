"""What the program of a client is told, and how it tells what came of each feature.

Nothing but Python's own library: it also runs where Sightline is not installed.
"""

import asyncio
import base64
import inspect
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

BASE = os.environ.get("SIGHTLINE_TAUGHT", "")
"""The server's address with /v1, for all but pictures."""
EYES = os.environ.get("SIGHTLINE_DEMO", "")
"""The demo model's."""
KEY = "none"
MODEL = "taught"
QUESTION = "What is the capital of France?"
WEATHER = "What is the weather in Ulm?"
STORY = "Tell a long story."
LOOK = "What is in this picture?"
BADGER = "badger"
"""What the demo model says of the picture, among other things."""
TOO_LONG = "word " * (int(os.environ.get("SIGHTLINE_CONTEXT", "0")) // 4)
"""More than the model's context holds."""

ANSWER = os.environ.get("SIGHTLINE_ANSWER", "")
SUNNY = os.environ.get("SIGHTLINE_SUNNY", "")
CITIES = ("Paris", "Rome", "Ulm")


def picture() -> bytes:
    """The file of a PNG."""
    with open(os.environ["SIGHTLINE_PICTURE"], "rb") as file:
        return file.read()


def picture_uri() -> str:
    return f"data:image/png;base64,{base64.b64encode(picture()).decode()}"


def expect(told: Any, wanted: Any) -> None:
    if told != wanted:
        raise AssertionError(f"{told!r} is not {wanted!r}")


def expect_in(wanted: str, told: Any) -> None:
    if wanted not in str(told):
        raise AssertionError(f"{wanted!r} is not in {told!r}")


def expect_pieces(pieces: list[str], wanted: str = "") -> None:
    """A stream of several pieces which together are the answer."""
    expect("".join(pieces), wanted or ANSWER)
    if len(pieces) < 4:
        raise AssertionError(f"it came in {len(pieces)} pieces")


def expect_usage(prompt: Any, answer: Any) -> None:
    """Tokens: of the prompt at least its letters, of the answer less than its letters."""
    if not (prompt and prompt > len(QUESTION) and answer and 4 < answer < len(ANSWER)):
        raise AssertionError(f"usage tells {prompt!r} and {answer!r}")


@contextmanager
def refused(kind: type[BaseException], *words: str) -> Iterator[None]:
    """What is done within must raise that, with these words of the server in the message."""
    try:
        yield
    except kind as error:
        for word in words or ("context ends at",):
            expect_in(word, error)
    else:
        raise AssertionError("nothing was raised")


def figure(name: str) -> float:
    """One of the server's numbers, by name and labels."""
    with urllib.request.urlopen(BASE.removesuffix("/v1") + "/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    found = (re.fullmatch(re.escape(name) + " (.+)", line) for line in lines)
    return sum(float(one[1]) for one in found if one)


@contextmanager
def cancelled() -> Iterator[None]:
    """What is left within must be seen by the server within seconds."""
    name = 'sightline_answers_total{reason="cancelled"}'
    before = figure(name)
    yield
    deadline = time.monotonic() + 20
    while figure(name) == before:
        if time.monotonic() > deadline:
            raise AssertionError("the server went on with the answer")
        time.sleep(0.1)


def report(package: str, **features: Callable[[], Any]) -> None:
    """Run each, and tell in a line of JSON what came of it."""
    print(json.dumps({"package": package, "version": version(package)}), flush=True)
    only = os.environ.get("SIGHTLINE_FEATURES", "").split()
    for name, feature in features.items():
        if only and name not in only:
            continue
        problem = None
        try:
            told = feature()
            if inspect.isawaitable(told):
                asyncio.run(_waited(told))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:600]
        print(json.dumps({"feature": name, "problem": problem}), flush=True)


async def _waited(told: Any) -> Any:
    return await told
