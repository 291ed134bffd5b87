"""A `Prompt`: token ids with placeholders, spans of images, and what the cache knows it by."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.prompts.thought import Thought
from vision_add_ons.base import ExpandedPrompt


@dataclass(frozen=True)
class Prompt(ExpandedPrompt):
    """An expanded prompt and what the prompt cache knows it by."""

    thought: Thought | None = None
    """How what a chat template wrote for the answer ends; None if no template wrote the prompt."""
    border: int | None = None
    """How many tokens are before the thought that the template began, which it leaves out of the
    prompts of later turns."""

    @cached_property
    def key(self) -> Sequence[Hashable]:
        """What the prompt cache compares: ids, with a picture's digest in place of its ids.

        Two pictures of one size make the same placeholders, so the ids alone would not do. Where
        tokens see each other whole, each stands for all of them.
        """
        if not self.spans and not self.bidirectional:
            return self.tokens
        key: list[Hashable] = list(self.tokens)
        for span in self.spans:
            key[span.start : span.end] = [span.picture.digest] * span.length
        for start, end in self.bidirectional:
            whole = hashlib.sha256(repr(key[start:end]).encode()).hexdigest()
            key[start:end] = [whole] * (end - start)
        return tuple(key)

    def cut(self, length: int) -> int:
        """The longest start of at most `length` tokens that cuts no picture in two."""
        for span in self.spans:
            if span.start < length < span.end:
                return span.start
        return length
