"""An answer that has parts: what it thought, what it said, and its calls of tools."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.decoding.channels import Channels, Marks, Piece
from engine.decoding.stop_strings import StopStrings
from engine.decoding.thinking import ThoughtTokens
from engine.events import TextDelta, ToolCall, ToolCallDelta
from engine.options import GenerationOptions
from engine.prompts.thought import Thought

if TYPE_CHECKING:
    from engine.tools.reader import CallReader, Told

PartEvent = TextDelta | ToolCallDelta | ToolCall
"""What a part of an answer is told as."""


class Parts:
    """The parts of one answer, as events. For the engine's thread alone."""

    def __init__(
        self,
        channels: Channels,
        tokens: ThoughtTokens | None,
        stops: StopStrings,
        reader: "CallReader | None" = None,
    ) -> None:
        """`tokens` follow its ids, where thoughts have marks; `stops` look at what is said.
        `reader` reads its calls, if it may have some."""
        self._channels = channels
        self._tokens = tokens
        self.stops = stops
        self._thoughts: list[str] = []
        self._reader = reader

    @property
    def reasoning(self) -> str:
        """All that was thought."""
        return "".join(self._thoughts)

    @property
    def reasoning_tokens(self) -> int:
        """How many tokens were thought."""
        return 0 if self._tokens is None else self._tokens.count

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Its calls of tools, so far."""
        return () if self._reader is None else tuple(self._reader.calls)

    @property
    def broken_calls(self) -> tuple[str, ...]:
        """What began as a call and is none."""
        return () if self._reader is None else tuple(self._reader.broken)

    @property
    def has_its_call(self) -> bool:
        """Whether it has the only call that it may have."""
        return self._reader is not None and self._reader.enough

    def feed(self, token: int, text: str, told: Mapping[str, Any]) -> list[PartEvent]:
        """What a token and the text that it makes ready give out.

        `told` is what a `TextDelta` tells of the token; the first has it. Nothing comes behind a
        stop string.
        """
        thinking = False
        if self._tokens is not None:
            self._tokens.feed(token)
            thinking = self._tokens.inside
        return self._deltas(self._channels.feed(text, thinking), told)

    def rest(self, text: str, by_itself: bool) -> list[PartEvent]:
        """What was held back, when the answer has ended, behind what the detokenizer did.

        `by_itself` says whether the model ended it.
        """
        pieces = [*self._channels.feed(text), *self._channels.flush()]
        deltas = self._deltas(pieces, {})
        if self._reader is not None:
            deltas += self._told(self._reader.end(by_itself), {})
        held = self.stops.flush()
        return [*deltas, TextDelta(held)] if held else deltas

    def _deltas(self, pieces: Sequence[Piece], told: Mapping[str, Any]) -> list[PartEvent]:
        deltas: list[PartEvent] = []
        for piece in pieces:
            if piece.channel == "thought":
                self._thoughts.append(piece.text)
                deltas.append(TextDelta("", reasoning=piece.text, **told))
            elif self._reader is not None:
                deltas += self._told(_read(self._reader, piece), told)
            else:
                deltas.append(TextDelta(self.stops.feed(piece.text), **told))
            told = {}
            if self.stops.matched is not None:
                break
        return [*deltas, TextDelta("", **told)] if told else deltas

    def _told(self, told: "Sequence[Told]", of_token: Mapping[str, Any]) -> list[PartEvent]:
        """What a reader gives out, behind what is told of its token."""
        said = "".join(one for one in told if isinstance(one, str))
        calls = [one for one in told if not isinstance(one, str)]
        return [TextDelta(self.stops.feed(said) if said else "", **of_token), *calls]

    def said(self, tokens: Sequence[int], decode: Callable[[list[int]], str]) -> tuple[int, ...]:
        """Those of an answer's tokens that are what was said; none where that is in pieces."""
        if self._reader is None and (self._channels.called or self._channels.said > 1):
            return ()
        if self._tokens is None:
            return () if self._thoughts else tuple(tokens)
        if self._tokens.inside:
            return ()
        start = self._tokens.done
        # As the text, without the blanks between the two.
        while start and start < len(tokens) and decode([tokens[start]]).isspace():
            start += 1
        return tuple(tokens[start:])


def _read(reader: "CallReader", piece: Piece) -> "list[Told]":
    if piece.channel != "tool":
        return reader.say(piece.text)
    if not reader.calling:
        return reader.begin(piece.text)
    return reader.close(piece.text) if piece.ends else reader.call(piece.text)


def parts_of(
    marks: Marks,
    thought: Thought | None,
    options: GenerationOptions,
    guided: bool,
    reader: "CallReader | None" = None,
) -> Parts | None:
    """The parts that an answer may have; None for one that has none.

    `thought` is how its prompt ends; `guided` says whether it is held to a schema. `reader` reads
    its calls of tools, if it may have some.
    """
    if reader is not None:
        channels = marks.channels(thought, (reader.form.start, reader.form.end))
    elif guided:
        may_think = thought == "none" and options.thinking is not False
        channels = marks.exact(thought, may_think)
    else:
        channels = marks.channels(thought)
    if channels is None:
        return None
    tokens = None if marks.ids is None else ThoughtTokens(*marks.ids, inside=thought == "open")
    return Parts(channels, tokens, StopStrings(options.stop), reader)
