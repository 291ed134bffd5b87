"""Token ids of long histories, which prompts and what is remembered of them share."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import mlx.core as mx
import numpy as np


class TokenIds(Sequence[int]):
    """Token ids that do not change, and are equal to any sequence of the same ones.

    They take four bytes each, copying them is one block's copy, and Python's garbage collector
    does not look through them. Raises `OverflowError` for what is no number of 32 bits.
    """

    __slots__ = ("_ids",)

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids: array[int] = ids._ids if isinstance(ids, TokenIds) else array("i", ids)

    @classmethod
    def joined(cls, parts: Iterable[Sequence[int]]) -> "TokenIds":
        """The ids of several sequences, one after the other."""
        own = [cls(part) for part in parts if part]
        if len(own) == 1:
            return own[0]
        made = cls()
        for part in own:
            made._ids += part._ids
        return made

    def copy(self) -> "array[int]":
        """The ids in an array, which may be changed."""
        return self._ids[:]

    def within(self, count: int) -> bool:
        """Whether all of them are ids of a vocabulary of so many."""
        ids = np.frombuffer(self._ids, np.intc) if self._ids else np.zeros(1)
        return bool(ids.min() >= 0 and ids.max() < count)

    def shared(self, other: "TokenIds") -> int:
        """How many leading ids are the other's too."""
        length = min(len(self), len(other))
        if not length:
            return 0
        ours, theirs = (np.frombuffer(x._ids, np.intc, length) for x in (self, other))
        apart = ours != theirs
        first = int(apart.argmax())
        return first if apart[first] else length

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> "TokenIds": ...

    def __getitem__(self, index: int | slice) -> "int | TokenIds":
        if not isinstance(index, slice):
            return self._ids[index]
        part = TokenIds()
        part._ids = self._ids[index]
        return part

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __add__(self, others: Sequence[int]) -> "TokenIds":
        return TokenIds.joined((self, others))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return self._ids == other._ids
        return isinstance(other, list | tuple) and self._ids.tolist() == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self._ids))

    def __repr__(self) -> str:
        return f"TokenIds({self._ids.tolist()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenIds, (self._ids.tolist(),)

    def __mlx_array__(self) -> mx.array:
        """What `mx.array` makes of it."""
        return mx.array(self._ids.tolist(), dtype=mx.int32)

    def index(self, token: int, start: int = 0, stop: int | None = None) -> int:
        """Where a token first stands. Raises `ValueError` if it does not."""
        return self._ids.index(token, start, len(self._ids) if stop is None else stop)

    def count(self, token: int) -> int:
        """How often a token stands there."""
        return self._ids.count(token)
