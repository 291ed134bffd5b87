"""An answer's calls of tools, read while it is written."""

import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass

from engine.events import ToolCall, ToolCallDelta
from engine.tools.arguments import HEADS, Arguments
from engine.tools.parsing import BrokenCall, Call, Parser
from engine.tools.tool import MOST_CALLS, Tool

Told = str | ToolCallDelta | ToolCall
"""What a reader gives out: a text that the answer says, or something of a call."""

_LETTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class CallForm:
    """How a model writes calls of tools."""

    name: str
    """mlx-lm's name for it."""
    start: str
    """What a block of calls begins with."""
    end: str
    """What it ends with; empty where the answer's end is its end."""
    parser: Parser
    """Reads what stands between."""
    headed: bool = False
    """Whether the name stands before the arguments, and not in one object with them (Mistral's
    later templates)."""


class CallReader:
    """Reads one answer, which comes in pieces: what it says, and its blocks of calls.

    Nothing is lost: what is no call in the end is said, with its marks. Only blanks go that stand
    between a call and what is before it, or behind it up to the end: they belong to the form.
    """

    def __init__(self, form: CallForm, tools: Sequence[Tool], parallel: bool) -> None:
        """`parallel` is whether there may be several calls."""
        self.form = form
        """How its calls are written."""
        self._tools, self._parallel = tools, parallel
        head = HEADS.get(form.name)
        self._head = None if head is None else re.compile(head)
        self._names = {tool.name for tool in tools}
        self._blanks = ""
        """What was said last and may yet belong to a call."""
        self._said = self._apart = False
        """Whether anything was said, and whether a call was behind it."""
        self._block: list[str] | None = None
        """The block that is being written."""
        self._mark = ""
        """What it began with."""
        self._arguments = Arguments(None)
        self._ids: list[str] = []
        """Those of the calls of this block that were told of."""
        self._index = 0
        """That of the first call of this block: none is told of twice."""
        self.calls: list[ToolCall] = []
        self.broken: list[str] = []
        """What began as a call and is none."""

    @property
    def enough(self) -> bool:
        """Whether the answer has all calls that it may have."""
        return len(self.calls) >= (MOST_CALLS if self._parallel else 1)

    def say(self, text: str) -> list[Told]:
        """Go on with a text that is no call."""
        said = self._blanks + text
        kept = said.rstrip()
        self._blanks = said[len(kept) :]
        if not kept:
            return []
        if self._apart:
            kept, self._apart = "\n" + kept, False
        self._said = True
        return [kept]

    @property
    def calling(self) -> bool:
        """Whether a block has begun, and not ended."""
        return self._block is not None

    def begin(self, mark: str) -> list[Told]:
        """A mark is there that begins a block."""
        self._block, self._mark, self._ids = [], mark, []
        self._arguments = Arguments(self._head)
        return []

    def call(self, text: str) -> list[Told]:
        """Go on with what stands in a block of calls."""
        assert self._block is not None
        self._block.append(text)
        told: list[Told] = []
        for piece in self._arguments.feed(text):
            if piece.name not in self._names or (piece.call and not self._parallel):
                self._arguments.stop()
                break
            index = self._index + piece.call
            if piece.call == len(self._ids):
                self._ids.append(self._own(piece.id))
            told.append(ToolCallDelta(index, self._ids[piece.call], piece.name, piece.text))
        return told

    def close(self, mark: str) -> list[Told]:
        """A mark is there that ends the block."""
        return self._read(mark)

    def end(self, by_itself: bool) -> list[Told]:
        """The answer is at its end; `by_itself` if the model ended it.

        A block without the mark that ends it is read then, too. Where the answer was cut, its
        calls may be, which not every parser notices.
        """
        if self._block is None:
            left, self._blanks = self._blanks, ""
            return [left] if left and not self.calls else []
        if by_itself or not self.form.end:
            return self._read("")
        return self._give_back("")

    def _read(self, end: str) -> list[Told]:
        body = "".join(self._block or ())
        try:
            calls, whole = self.form.parser.read(body, self._tools)
            self._check(calls)
        except BrokenCall:
            return self._give_back(end)
        told: list[Told] = []
        for i, call in enumerate(calls if self._parallel else calls[:1]):
            told += self._made(i, call)
        self._index += max(i + 1, len(self._ids))
        self._ids = []
        if not whole or (len(calls) > 1 and not self._parallel):
            return [*self._give_back(end), *told]
        self._block, self._blanks, self._apart = None, "", self._said
        return told

    def _check(self, calls: Sequence[Call]) -> None:
        """Raises `BrokenCall` where what was told of calls is not what a parser makes of them."""
        for i, written in enumerate(self._arguments.written[: len(self._ids)]):
            if i >= len(calls) or not calls[i].is_written(self._arguments.names[i], written):
                raise BrokenCall("it is not what it seemed")

    def _made(self, i: int, call: Call) -> list[Told]:
        index = self._index + i
        told: list[Told] = []
        if i < len(self._ids):
            id_, written = self._ids[i], self._arguments.written[i]
        else:
            id_, written = self._own(call.id), call.written
            told.append(ToolCallDelta(index, id_, call.name, written))
        made = ToolCall(index, id_, call.name, call.arguments, written)
        self.calls.append(made)
        return [*told, made]

    def _own(self, given: str | None) -> str:
        """An id that no other call of the answer has; models number calls, and may do it wrong."""
        taken = {*(call.id for call in self.calls), *self._ids}
        return given if given and given not in taken else _new_id()

    def _give_back(self, end: str) -> list[Told]:
        """What is no call, as it stood."""
        raw = self._mark + "".join(self._block or ()) + end
        self._index += len(self._ids)
        self._block, self._ids = None, []
        self.broken.append(raw)
        told = self.say(raw)
        left, self._blanks, self._apart = self._blanks, "", True
        return [*told, left] if left else told


def _new_id() -> str:
    """Nine letters and digits, which Mistral's templates insist on."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
