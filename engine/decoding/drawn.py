"""Tokens that were drawn, and may still be computed by the device."""

from functools import cached_property

import mlx.core as mx
import numpy as np


class Drawn:
    """A token of each of some answers, drawn in one step. For the engine's thread alone."""

    def __init__(self, tokens: mx.array, meanwhile: mx.array) -> None:
        """`tokens` have shape [rows]; `meanwhile` is what the device computes while somebody waits
        for them."""
        self._tokens, self._meanwhile = tokens, meanwhile

    @cached_property
    def _values(self) -> list[int]:
        mx.async_eval(self._meanwhile)
        return [int(token) for token in np.array(self._tokens)]

    def __getitem__(self, row: int) -> "DrawnToken":
        return DrawnToken(self, row)


class DrawnToken:
    """The token of one answer."""

    def __init__(self, drawn: Drawn, row: int) -> None:
        self._drawn, self._row = drawn, row

    @property
    def value(self) -> int:
        """Its id, once it is computed."""
        return self._drawn._values[self._row]

    @cached_property
    def array(self) -> mx.array:
        """Its id, [1], for the device to go on with; nobody waits for that."""
        tokens = self._drawn._tokens
        return tokens if tokens.size == 1 else tokens[self._row : self._row + 1]
