"""Where a text that begins as an earlier one did may be cut, so that only the rest is encoded.

A tokenizer of the `tokenizers` library first cuts a text at its added tokens (`<|im_start|>`,
`[INST]`), and encodes each stretch between two of them by itself. So two texts that share their
beginning up to such a token share the ids up to it, and what begins with it can be encoded alone.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


class Cuts:
    """The added tokens of a backend of the `tokenizers` library at which a text may be cut."""

    def __init__(self, backend: Any) -> None:
        added = backend.get_added_tokens_decoder()
        # One that is sought in the normalized text is found after the text was cut, and whether
        # one that stands alone is found depends on what is before it.
        self._texts = {
            token_id: token.content
            for token_id, token in added.items()
            if not token.normalized and not token.single_word and not token.lstrip
        }
        self._margin = 1 + max((len(token.content) for token in added.values()), default=0)
        """How far a token that is found can reach, and the character behind it."""

    def last(self, text: str, ids: Sequence[int], starts: Sequence[int], shared: int) -> int:
        """The index of the last token that a text may be cut before, or 0.

        The text has the token `ids`, which begin at the characters `starts`, and another text
        begins with the same `shared` characters. Both have the ids before the index.
        """
        # A token that begins before the cut and is longer would end within what is shared.
        return self.before(text, ids, starts, shared - self._margin + 1)

    def before(self, text: str, ids: Sequence[int], starts: Sequence[int], place: int) -> int:
        """The index of the last such token that begins before a character."""
        index = bisect_left(starts, place) - 1
        while index > 0:
            added = self._texts.get(ids[index])
            # A model may have the same id for something else: what is unknown to it, or blanks.
            if added is not None and text.startswith(added, starts[index]):
                return index
            index -= 1
        return 0
