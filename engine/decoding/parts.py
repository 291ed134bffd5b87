"""An answer that has parts: what it thought, and what it said."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.decoding.channels import Channels, Marks, Piece
from engine.decoding.stop_strings import StopStrings
from engine.decoding.thinking import ThoughtTokens
from engine.events import TextDelta
from engine.options import GenerationOptions
from engine.prompts.thought import Thought


class Parts:
    """The parts of one answer, as events. For the engine's thread alone."""

    def __init__(
        self, channels: Channels, tokens: ThoughtTokens | None, stops: StopStrings
    ) -> None:
        """`tokens` follow its ids, where thoughts have marks; `stops` look at what is said."""
        self._channels = channels
        self._tokens = tokens
        self.stops = stops
        self._thoughts: list[str] = []

    @property
    def reasoning(self) -> str:
        """All that was thought."""
        return "".join(self._thoughts)

    @property
    def reasoning_tokens(self) -> int:
        """How many tokens were thought."""
        return 0 if self._tokens is None else self._tokens.count

    def feed(self, token: int, text: str, told: Mapping[str, Any]) -> list[TextDelta]:
        """What a token and the text that it makes ready give out.

        `told` is what a `TextDelta` tells of the token; the first has it. Nothing comes behind a
        stop string.
        """
        thinking = False
        if self._tokens is not None:
            self._tokens.feed(token)
            thinking = self._tokens.inside
        return self._deltas(self._channels.feed(text, thinking), told)

    def rest(self, text: str) -> list[TextDelta]:
        """What was held back, when the answer has ended, behind what the detokenizer did."""
        pieces = [*self._channels.feed(text), *self._channels.flush()]
        deltas = self._deltas(pieces, {})
        held = self.stops.flush()
        return [*deltas, TextDelta(held)] if held else deltas

    def _deltas(self, pieces: Sequence[Piece], told: Mapping[str, Any]) -> list[TextDelta]:
        deltas = []
        for piece in pieces:
            if piece.channel == "thought":
                self._thoughts.append(piece.text)
                deltas.append(TextDelta("", reasoning=piece.text, **told))
            else:
                deltas.append(TextDelta(self.stops.feed(piece.text), **told))
            told = {}
            if self.stops.matched is not None:
                break
        return [*deltas, TextDelta("", **told)] if told else deltas

    def said(self, tokens: Sequence[int], decode: Callable[[list[int]], str]) -> tuple[int, ...]:
        """Those of an answer's tokens that are what was said; none where that is in pieces."""
        if self._channels.called or self._channels.said > 1:
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


def parts_of(
    marks: Marks, thought: Thought | None, options: GenerationOptions, guided: bool
) -> Parts | None:
    """The parts that an answer may have; None for one that has none.

    `thought` is how its prompt ends; `guided` says whether it is held to a schema.
    """
    if guided:
        may_think = thought == "none" and options.thinking is not False
        channels = marks.exact(thought, may_think)
    else:
        channels = marks.channels(thought)
    if channels is None:
        return None
    tokens = None if marks.ids is None else ThoughtTokens(*marks.ids, inside=thought == "open")
    return Parts(channels, tokens, StopStrings(options.stop))
