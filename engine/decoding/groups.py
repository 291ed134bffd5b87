"""Prompts that can be read together: of about one length, so that little is padded."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from engine.decoding.answer import Answer
from vision_add_ons.cache_views import CacheView

TOGETHER = 8
"""Prompts that are read together, at most: as many as mlx-lm's own batches have."""

PADDED = 1.25
"""How much more than their own tokens prompts that are read together may take, padded."""


@dataclass(eq=False)
class Unread:
    """An answer, and what of its prompt is left to run."""

    answer: Answer
    tokens: Sequence[int]
    embeddings: mx.array | None = None
    """What is run in place of the tokens, [tokens, hidden_size], where pictures are among them."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def joins(self) -> bool:
        """Whether it can be read with others: it is no picture's end, needs no views, and is not
        to be kept as it is somewhere before its end."""
        prompt, kv = self.answer.prompt, self.answer.kv or ()
        ends = max((span.end for span in prompt.spans), default=0)
        views = prompt.bidirectional or any(isinstance(cache, CacheView) for cache in kv)
        stops = views or self.answer.border is not None
        return not stops and len(self) > 1 and ends < len(prompt.tokens)


def alike(prompts: Sequence[Unread]) -> Iterator[list[Unread]]:
    """Groups of about one length, in the cache and left to run: the shorter are padded.

    Those with pictures are apart from texts, and what cannot join is by itself.
    """
    for sees in (False, True):
        group: list[Unread] = []
        joining = [one for one in prompts if one.joins and (one.embeddings is not None) is sees]
        for one in sorted(joining, key=lambda one: (_whole(one), len(one))):
            padded = any(_padded([*group, one], length) for length in (len, _whole))
            if group and (len(group) == TOGETHER or padded):
                yield group
                group = []
            group.append(one)
        if group:
            yield group
    yield from ([one] for one in prompts if not one.joins)


def _whole(one: Unread) -> int:
    return len(one.answer.prompt.tokens)


def _padded(group: Sequence[Unread], length: Callable[[Unread], int]) -> bool:
    """Whether too much would be padded, by this length of theirs."""
    lengths = [length(one) for one in group]
    return max(lengths) * len(group) > PADDED * sum(lengths)
