"""One of the answers that are decoded together, as the lane knows it."""

from collections.abc import Sequence

import mlx.core as mx

from engine.decoding.drawn import DrawnToken
from engine.decoding.guide import AnswerGuide
from engine.decoding.sampling import LogitsProcessor


class LaneRow:
    """What a lane knows of a row beside what is drawn for it."""

    def __init__(
        self,
        name: int,
        length: int,
        processors: Sequence[LogitsProcessor],
        guide: AnswerGuide | None = None,
    ) -> None:
        """`length` is how many tokens the row's caches hold."""
        self.name = name
        self.length = length
        self.processors = processors
        self.guide = guide
        self._begun = False
        self._tokens: mx.array | None = None

    def process(self, token: mx.array, logits: mx.array) -> mx.array:
        """Logits [1, vocab_size] after `token`, [1], by its processors, which see all tokens."""
        if not self.processors:
            return logits
        seen = token if self._tokens is None else mx.concatenate([self._tokens, token])
        self._tokens = seen
        for process in self.processors:
            logits = process(seen, logits)
        return logits

    def forget(self, count: int) -> None:
        """The last `count` tokens that were processed were none."""
        if self._tokens is not None and count:
            self._tokens = self._tokens[:-count]

    def allowed(self, token: DrawnToken) -> mx.array | None:
        """Which tokens may follow `token`, [vocab_size]; None for all. To be asked once a token."""
        if self.guide is None:
            return None
        begun, self._begun = self._begun, True
        return self.guide.after(token if begun else None)
