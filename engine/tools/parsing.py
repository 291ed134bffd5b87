"""What mlx-lm's parsers make of a call that a model wrote: checked, and within bounded time.

They are others' programs, run on whatever a model says. Some take minutes for a few thousand
characters of garbage (`gemma4` and `kimi_k3`, whose patterns are tried from each place anew), all
of them milliseconds for a call of a hundred thousand characters that is one.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.plain_data import MOST_DEPTH, depth_of
from engine.tools.mistral import with_ids
from engine.tools.tool import Tool

MOST_CALL = 2**20
"""Characters of a block of calls; what has more is no call."""

SHORT = 256
"""Characters for which no parser takes long."""

SECONDS = 2.0
"""How long a parser may take for one block."""

RUNNING = 2
"""Parsers that go on beyond their time, at most; while there are as many, none is begun. They
hold nothing up meanwhile, since regular expressions let go of the interpreter."""

OPENERS = {
    "function_gemma": "call:",
    "kimi_k3": "<|open|>call",
    "minimax_m2": "<invoke ",
    "muse_spark": "<atem:invoke ",
    "qwen3_coder": "<function=",
}
"""By the names of parsers that leave out calls without a word, what each call begins with."""

BY_TYPE = {"glm47", "laguna", "longcat", "qwen3_coder"}
"""The names of those that read a value by the one type that its schema names, and as a text where
it names none, or several: an integer that may be null would become a text."""

Parse = Callable[[str, Any], Any]


class BrokenCall(Exception):
    """What a model wrote is no call. Says why."""


@dataclass(frozen=True)
class Call:
    """A call as it was read."""

    name: str
    arguments: dict[str, Any]
    written: str
    """The arguments as JSON."""
    id: str | None

    def is_written(self, name: str, arguments: str) -> bool:
        """Whether a tool's name, and arguments as a model wrote them, are this call's."""
        try:
            return name == self.name and json.loads(arguments) == self.arguments
        except (ValueError, RecursionError):
            return False


class Parser:
    """One of mlx-lm's, for one loaded model."""

    def __init__(self, parse: Parse, name: str, seconds: float = SECONDS) -> None:
        self._parse = with_ids(parse) if name == "mistral" else parse
        self._seconds = seconds
        self._opener = OPENERS.get(name)
        self._by_type = name in BY_TYPE
        self._places = threading.Semaphore(RUNNING)

    def read(self, text: str, tools: Sequence[Tool]) -> tuple[list[Call], bool]:
        """The calls of a block, of which `text` stands between the marks, at least one; and
        whether they are all that there are. Raises `BrokenCall`."""
        if len(text) > MOST_CALL:
            raise BrokenCall(f"it has {len(text):,} characters")
        written = [tool.typed if self._by_type else tool.written for tool in tools]
        made = self._parsed(text, written)
        listed = made if isinstance(made, list) else [made]
        names = {tool.name for tool in tools}
        calls = [_checked(one, names) for one in listed]
        if not calls:
            raise BrokenCall("it has no call in it")
        return calls, self._opener is None or text.count(self._opener) <= len(calls)

    def _parsed(self, text: str, written: list[dict[str, Any]]) -> Any:
        if len(text) <= SHORT:
            return _tried(self._parse, text, written)
        if not self._places.acquire(blocking=False):
            raise BrokenCall("others take too long to be read")
        made: list[Any] = []

        def work() -> None:
            try:
                made.append(_tried(self._parse, text, written))
            except BrokenCall as error:
                made.append(error)
            finally:
                self._places.release()

        thread = threading.Thread(target=work, name="sightline-tool-call", daemon=True)
        thread.start()
        thread.join(self._seconds)
        if not made:
            raise BrokenCall(f"reading it takes more than {self._seconds:g} seconds")
        if isinstance(made[0], BrokenCall):
            raise made[0]
        return made[0]


def _tried(parse: Parse, text: str, written: list[dict[str, Any]]) -> Any:
    try:
        return parse(text, written)
    except Exception as error:  # whatever a parser trips over
        raise BrokenCall(f"{type(error).__name__}: {error!s:.200}") from None


def _checked(made: Any, names: set[str]) -> Call:
    if not isinstance(made, Mapping):
        raise BrokenCall(f"it is {type(made).__name__}")
    name, arguments, id_ = made.get("name"), made.get("arguments", {}), made.get("id")
    if not isinstance(name, str) or name not in names:
        raise BrokenCall(f"it calls {name!r:.60}, and there is no such tool")
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        # Parsers read Python's literals too, of which some are no JSON.
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        written.encode()
        plain = json.loads(written)
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenCall(f"its arguments are no JSON ({error!s:.100})") from None
    if not isinstance(plain, dict):
        raise BrokenCall("its arguments are no object")
    if depth_of(written) > MOST_DEPTH:  # what a history could not hold
        raise BrokenCall(f"its arguments are nested deeper than {MOST_DEPTH} levels")
    return Call(name, plain, written, id_ if isinstance(id_, str) and 0 < len(id_) <= 128 else None)
