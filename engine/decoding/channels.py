"""An answer's text, split while it streams: what is thought, what calls tools, and what is said.

Where which begins, mlx-lm's tokenizer and its text state machine know.
"""

from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from mlx_lm.generate import TextStateMachine, make_text_state_machine

from engine.prompts.thought import Thought

Channel = Literal["said", "thought", "tool"]

_CHANNELS: dict[str, Channel] = {"normal": "said", "reasoning": "thought", "tool": "tool"}
"""By the states of mlx-lm's machine; the text of any other is the form's own."""

_FIRST = "first"
"""A state of ours: where an answer may still begin with a thought."""


class Piece(NamedTuple):
    """A piece of an answer's text."""

    channel: Channel
    text: str
    """Of a call, all of it, its marks too; of the others, what stands between the marks."""
    ends: bool = False
    """Whether this is the end of a call: its mark."""


class Channels:
    """Splits one answer. What may yet become a mark is held back, as are blanks beside marks.

    White space around a thought is the form's and not given out; nor is it before what is said, if
    a thought or a call is before that. All else is, in its order.
    """

    def __init__(self, machine: TextStateMachine, state: str, exact: bool = False) -> None:
        """`machine` has mlx-lm's names of states, and begins in `state`.

        With `exact`, whoever feeds the text tells where thoughts end, and what is said keeps its
        white space.
        """
        self._machine = machine
        self._exact = exact
        self._state = machine.make_state(state)
        self._begun = False
        """Whether the channel at work has given out text."""
        self._marked = state != "normal"
        """Whether a thought or a call was before what is said next."""
        self._blank = ""
        """White space that is held back."""
        self._form = ""
        """Text of the form's own since its last mark."""
        self.said = self.called = 0
        """How many stretches of text were said, and of calls."""

    @property
    def thinking(self) -> bool:
        """Whether a thought is at work, as far as the text goes."""
        return bool(self._state[0] == "reasoning")

    def feed(self, text: str, thinking: bool = False) -> list[Piece]:
        """The pieces that this makes ready, in order; of a call at most one at a time.

        If it is `exact`, a thought does not end while `thinking`.
        """
        pieces: list[Piece] = []
        open_ended = self._exact and thinking
        if open_ended and self.thinking:
            self._give(pieces, "reasoning", text)
            return pieces
        state, segments = TextStateMachine.split(self._state, text)
        if len(segments) == 1:
            self._state = state
            self._give(pieces, *segments[0])
            return pieces
        # Which marks these were it does not tell; with a character there is one, if any.
        for i, character in enumerate(text, 1):
            held = self._state[3]
            self._state, ((before, passed), *changed) = TextStateMachine.split(
                self._state, character
            )
            self._give(pieces, before, passed)
            if changed:
                self._cross(pieces, before, self._state[0], (held + character)[len(passed) :])
                if open_ended and self.thinking:
                    self._give(pieces, "reasoning", text[i:])
                    break
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back, when the answer has ended."""
        pieces: list[Piece] = []
        self._state, held, state = TextStateMachine.flush(self._state)
        self._give(pieces, state, held)
        channel = _CHANNELS.get(state)
        if self._blank and not (channel == "said" and self._marked) and channel is not None:
            self._add(pieces, channel, self._blank)
        if channel is None and self._form:  # an answer without its marks is one all the same
            self._add(pieces, "said", self._form)
        self._blank = self._form = ""
        return pieces

    def _give(self, pieces: list[Piece], state: str, text: str) -> None:
        if not text:
            return
        if state == _FIRST:  # it begins with something else
            held = self._state[3]
            self._state = self._machine.make_state(state := "normal")
            text += held
        channel = _CHANNELS.get(state)
        if channel is None:
            self._form += text
        elif channel == "tool":
            pieces.append(Piece("tool", text))
        elif channel == "thought":
            text = self._blank + text
            text = text if self._begun else text.lstrip()
            kept = text.rstrip().rstrip("\ufffd").rstrip()  # cut off, it may end in a character
            self._blank = text[len(kept) :]
            self._add(pieces, channel, kept)
        elif self._begun or self._exact:
            self._add(pieces, channel, text)
        else:
            text, self._blank = self._blank + text, ""
            if text.isspace():
                self._blank = text
            else:
                self._add(pieces, channel, text.lstrip() if self._marked else text)

    def _add(self, pieces: list[Piece], channel: Channel, text: str) -> None:
        if not text:
            return
        if channel == "said" and not self._begun:
            self.said += 1
        self._begun = True
        pieces.append(Piece(channel, text))

    def _cross(self, pieces: list[Piece], before: str, after: str, mark: str) -> None:
        self._form = ""
        if before == after:  # a mark of the form's within what is said
            return
        self._blank, self._begun = "", False
        self._marked |= {before, after} & {"reasoning", "tool"} != set()
        if before == "tool" or after == "tool":
            self.called += after == "tool"
            pieces.append(Piece("tool", mark, ends=before == "tool"))


class Marks:
    """What a model writes around its thoughts, as mlx-lm's tokenizer knows it. For any thread."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is mlx-lm's."""
        self._tokenizer = tokenizer
        self.there = bool(
            tokenizer.has_thinking or tokenizer.response_transitions or tokenizer.structural_markers
        )
        """Whether its answers may have parts; those of other models are plain."""
        self.thought: tuple[str, str] | None = None
        """What a thought begins and ends with; None for models that have no such marks."""
        self.ids: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        """The same as token ids."""
        if tokenizer.has_thinking:
            self.thought = tokenizer.think_start, tokenizer.think_end
            self.ids = tokenizer.think_start_tokens, tokenizer.think_end_tokens

    def channels(
        self, thought: Thought | None, calls: tuple[str, str] | None = None
    ) -> Channels | None:
        """What splits an answer; None where there is nothing to split.

        `thought` is how its prompt ends: None for one that no template wrote, whose continuation
        is a text as it stands. `calls` are what a tool's call begins and ends with (the latter may
        be empty), for answers that may call some.
        """
        known = self._tokenizer
        edges = known.response_transitions
        if calls is None:
            edges = {at: [edge for edge in to if edge[1] != "tool"] for at, to in edges.items()}
        if thought is None or not (
            known.has_thinking or edges or known.structural_markers or calls is not None
        ):
            return None
        start, end = calls or (None, None)
        machine = make_text_state_machine(
            SimpleNamespace(
                has_thinking=known.has_thinking,
                think_start=known.think_start,
                think_end=known.think_end,
                has_tool_calling=calls is not None,
                tool_call_start=start,
                tool_call_end=end,
                structural_markers=known.structural_markers,
                response_transitions=edges,
            )
        )
        state = "reasoning" if thought == "open" else "normal"
        return Channels(machine, known.response_initial_state or state)

    def exact(self, thought: Thought | None, may_think: bool) -> Channels | None:
        """What splits an answer that is held to a schema behind its thought, if it may have one.

        Behind that, nothing is a mark: what the schema allows is said.
        """
        if self.thought is None or thought is None or not (thought == "open" or may_think):
            return None
        start, end = self.thought
        edges = {_FIRST: [(start, "reasoning")], "reasoning": [(end, "normal")], "normal": []}
        machine = TextStateMachine(edges)
        return Channels(machine, "reasoning" if thought == "open" else _FIRST, exact=True)
