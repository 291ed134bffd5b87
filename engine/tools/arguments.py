"""A call's arguments while they are written, where a model's form has them as JSON."""

import re
from typing import NamedTuple

MOST_HEAD = 4096
"""Characters before a call's arguments; what has more is read when it is whole."""

_JSON_HEAD = r'\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'

HEADS = {
    "json_tools": r"\s*" + _JSON_HEAD,
    "mistral": r"(?:\s*\[\s*|\s*\}\s*,\s*)"
    + _JSON_HEAD
    + r"|\s*(?:\[TOOL_CALLS\]\s*)?(?P<bare>[\w-]+)\s*(?:\[CALL_ID\]\s*(?P<id>[\w-]+)\s*)?"
    r"\[ARGS\]\s*(?=\{)",
    "kimi_k2": r"\s*(?:<\|tool_call_end\|>\s*)?<\|tool_call_begin\|>\s*"
    r"(?P<id>(?:functions\.)?(?P<name>[^:<]+):\d+)\s*<\|tool_call_argument_begin\|>\s*(?=\{)",
}
"""By the names of mlx-lm's parsers, what stands before a call's arguments, from where the call
before it ends."""


class Piece(NamedTuple):
    """What became ready of a call's arguments."""

    call: int
    """Which call of the block, from 0."""
    name: str
    """Which tool."""
    id: str | None
    """What the model calls it, with its first piece."""
    text: str
    """Empty with the first piece of each."""


class Arguments:
    """Finds the arguments of a block's calls; the block comes in pieces of any size."""

    def __init__(self, head: "re.Pattern[str] | None") -> None:
        """`head` is one of `HEADS`, None for a form that has no JSON."""
        self._head = head
        self._rest = ""
        """What is not dealt with yet."""
        self._depth = 0
        self._quoted = self._escaped = False
        self._name = ""
        self.written: list[str] = []
        """The arguments of each call, as far as they are there."""
        self.names: list[str] = []
        """Which tools they are for."""

    def feed(self, text: str) -> list[Piece]:
        """What this adds to the calls' arguments."""
        pieces: list[Piece] = []
        self._rest += text
        while self._head is not None and self._rest:
            if not self._depth and not self._begin(pieces):
                break
            end = self._end()
            piece, self._rest = self._rest[:end], self._rest[end:]
            self.written[-1] += piece
            pieces.append(Piece(len(self.written) - 1, self.names[-1], None, piece))
        if self._head is None:
            self._rest = ""
        return pieces

    def stop(self) -> None:
        """Look no further."""
        self._head, self._rest = None, ""

    def _begin(self, pieces: list[Piece]) -> bool:
        """Whether a call's arguments begin here."""
        assert self._head is not None
        found = self._head.match(self._rest)
        if found is None:
            if len(self._rest) > MOST_HEAD:
                self._head = None
            return False
        named = found.groupdict()
        name = named.get("name") or named.get("bare") or ""
        self.names.append(name)
        self.written.append("")
        self._rest = self._rest[found.end() :]
        pieces.append(Piece(len(self.names) - 1, name, named.get("id"), ""))
        return True

    def _end(self) -> int:
        """How much of the rest belongs to the arguments at hand."""
        for i, character in enumerate(self._rest):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return i + 1
        return len(self._rest)
