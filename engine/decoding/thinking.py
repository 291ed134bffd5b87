"""An answer's thought, token by token: how long it is, and that it ends in time."""

from collections import deque
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from engine.decoding.channels import Marks
from engine.decoding.drawn import DrawnToken
from engine.decoding.guide import AnswerGuide
from engine.options import GenerationOptions
from engine.prompts.thought import Thought
from vision_add_ons.errors import OptionError


class ThoughtTokens:
    """Follows an answer's token ids into its thoughts and out of them."""

    def __init__(self, start: Sequence[int], end: Sequence[int], inside: bool) -> None:
        """`start` and `end` are the ids of a thought's marks; `inside`: it begins with one."""
        self._start, self._end = tuple(start), tuple(end)
        self.inside = inside
        """Whether a thought is at work."""
        self.count = 0
        """How many tokens were thought, marks aside."""
        self.done = 0
        """How many tokens there were when the latest thought ended; 0 while none did."""
        self._fed = 0
        self._latest: deque[int] = deque(maxlen=max(len(self._start), len(self._end)))

    def feed(self, token: int) -> None:
        """The next token."""
        self._fed += 1
        self._latest.append(token)
        self.count += self.inside
        mark = self._end if self.inside else self._start
        if token != mark[-1] or tuple(self._latest)[-len(mark) :] != mark:
            return
        if self.inside:
            self.count -= len(mark)
            self.done = self._fed
        self.inside = not self.inside
        self._latest.clear()


class ThoughtGuide:
    """Lets an answer think as long as it may, and then holds it to its schema, if it has one.

    A thought that is too long is ended by its mark. With a schema, the answer ends behind its
    thought alone, and may begin with one only. For the engine's thread alone.
    """

    def __init__(
        self,
        marks: tuple[Sequence[int], Sequence[int]],
        vocab_size: int,
        inside: bool,
        most: int | None = None,
        then: AnswerGuide | None = None,
        may_think: bool = False,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """`marks` begin and end a thought, as ids; `inside` says whether the answer begins in one.

        `most` is how many tokens thoughts may have. `then` guides what is behind the thought;
        `may_think` says whether there may be one before it, and `ends` are the tokens that end
        answers.
        """
        self._start, self._end = (tuple(mark) for mark in marks)
        self._tokens = ThoughtTokens(self._start, self._end, inside)
        self._vocab_size = vocab_size
        self._most, self._then = most, then
        self._opening = may_think and not inside and then is not None
        """Whether an answer that has a schema may begin with a thought, or is at its mark."""
        self._opened = self._closed = 0
        """How many tokens of the mark at work are written."""
        self._unending: mx.array | None = None
        if then is not None:
            unending = np.ones(vocab_size, bool)
            unending[list(ends)] = False
            self._unending = mx.array(unending)

    @property
    def error(self) -> OptionError | None:
        """Why it cannot go on."""
        return None if self._then is None else self._then.error

    def after(self, token: DrawnToken | None) -> mx.array | None:
        """Which tokens may follow, as `Guide.after` tells it."""
        tokens, before = self._tokens, self._tokens.inside
        if token is not None and (self._then is None or before or self._opening):
            tokens.feed(token.value)
        if self._opening and token is not None and not tokens.inside:
            if token.value == self._start[self._opened]:
                self._opened += 1
                return self._only(self._start[self._opened])
            self._opening = False
        if tokens.inside:
            self._opening = False
            if self._closed or (self._most is not None and tokens.count >= self._most):
                self._closed += 1
                return self._only(self._end[self._closed - 1])
            return self._unending
        self._closed = 0
        if self._then is None:
            return None
        allowed = self._then.after(None if before else token)
        if self._opening and allowed is not None:
            first = np.zeros(self._vocab_size, bool)
            first[self._start[0]] = True
            allowed = mx.logical_or(allowed, mx.array(first))
        return allowed

    def _only(self, token: int) -> mx.array:
        only = np.zeros(self._vocab_size, bool)
        only[token] = True
        return mx.array(only)


def thinking_guide(
    marks: Marks,
    vocab_size: int,
    thought: Thought | None,
    options: GenerationOptions,
    guide: AnswerGuide | None,
    ends: frozenset[int],
) -> AnswerGuide | None:
    """What guides an answer: `guide`, which its schema gave if it has one, behind its thought.

    `thought` is how its prompt ends: None for one that no template wrote.
    """
    most = options.max_thinking_tokens
    if marks.ids is None or thought is None or (guide is None and most is None):
        return guide
    may_think = thought == "none" and options.thinking is not False
    if guide is not None and thought != "open" and not may_think:
        return guide
    inside = thought == "open"
    return ThoughtGuide(marks.ids, vocab_size, inside, most, guide, may_think, ends)
