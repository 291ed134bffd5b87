"""Prompt lookup: what followed the latest tokens where they stood before, as the draft."""

from collections.abc import Sequence

import mlx.core as mx

LENGTHS = (4, 3, 2)
"""How many of the latest tokens are looked up, the most telling first. Of two alone, little follows
as it did before; but in an edited text, much."""

AT_ONCE = 4096
"""Tokens that are got to know at once, while a step is computed: of a long history, all of them
would take longer than steps do."""


class PromptLookup:
    """The places of all short runs of tokens in one prompt and its answer.

    It needs no model, and some 400 bytes for each token: an entry for each length, the latest place
    that the run stands at. After Saxena, "Prompt Lookup Decoding" (2023), which searches.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        """Behind the latest of each run that is not the end of all tokens."""

    def ready(self, history: Sequence[int]) -> bool:
        """Whether the history alone ends as it did before: only then is it worth waiting for the
        token behind it, which may be being computed, to look for what follows that. Not before
        all of it is known, which takes several calls for a long one."""
        known = len(self._tokens)
        for token in history[known : known + AT_ONCE]:
            self._note()
            self._tokens.append(token)
        return len(self._tokens) == len(history) and self._find() is not None

    def draft(self, history: Sequence[int], last: mx.array, count: int) -> mx.array | None:
        """What may follow `history` and the `last` token, [1]: `count` ids, or None."""
        known = len(self._tokens)
        self._note()
        self._tokens.append(int(last))
        place = self._find()
        if place is not None:
            # What is there may end meanwhile: then it goes on with itself, as lists and loops do.
            for i in range(place, place + count):
                self._tokens.append(self._tokens[i])
        drafted = self._tokens[known + 1 :]
        del self._tokens[known:]
        return mx.array(drafted, dtype=last.dtype) if drafted else None

    def _note(self) -> None:
        """Know the runs that end with the latest token, behind which another comes now."""
        for length in LENGTHS:
            if len(self._tokens) >= length:
                self._places[tuple(self._tokens[-length:])] = len(self._tokens)

    def _find(self) -> int | None:
        """Where goes on what all tokens end with."""
        for length in LENGTHS:
            place = self._places.get(tuple(self._tokens[-length:]))
            if place is not None and len(self._tokens) >= length:
                return place
        return None

    def close(self, history: Sequence[int]) -> None:
        """Nothing is kept."""
