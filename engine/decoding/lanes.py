"""Rows of very different lengths do not make each other pay: those of about one length are a lane.

In a lane, each row is padded to the longest: a row of 16,000 tokens beside seven of 300 would have
a step read, and the engine hold, 8 times 16,000 tokens of KV caches. Each lane more reads the
decoder's weights once more. Between the two, the lanes are made that cost the fewest bytes.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from engine.decoding.lane import Lane
from engine.memory.room import Room

SHARE = 0.5
"""How much of a reading of the weights another lane counts for.

By its time alone, a step that is bound by memory is better off with another lane once that spares
more bytes of padding than the weights have. But padding is also held for as long as the answers are
made, by an app that may have little memory left, so its bytes count twice. At worst, a step of two
lanes takes a third longer than with all rows padded, and one of many not twice as long. Of a
mixture of experts a step reads a part of the weights, and rows are padded further than pays off.
"""


class Lanes:
    """The lanes of all rows; each is stepped once a round. For one thread."""

    def __init__(self, model: Any, room: Room) -> None:
        """`room` bounds what is padded."""
        self._model = model
        self._room = room
        self._lanes: list[Lane] = []
        self._changed = False
        """Whether anybody came or left since the lanes were made."""

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes))

    def add(self, lane: Lane) -> None:
        """Decode the rows of a new lane too, in whichever lanes they fit."""
        self._lanes.append(lane)
        self._changed = True

    def take(self, name: int) -> list[Any]:
        """A row's plain caches; see `Lane.take`."""
        return next(lane for lane in self._lanes if name in lane.names).take(name)

    def leave(self, lane: Lane, names: Collection[int]) -> dict[int, list[Any]]:
        """Leave these rows of a lane out from now on; of each its plain caches, as above."""
        if len(names) == len(lane.rows):
            self.lose(lane)
        self._changed = True
        return lane.leave(names)

    def lose(self, lane: Lane) -> None:
        """Leave a whole lane out from now on."""
        self._lanes.remove(lane)

    def settle(self) -> list[tuple[list[int], BaseException]]:
        """Begin with the rows that are new, and have each in its lane, if anybody came or left.

        New rows that come into one lane begin together. Returns those that could not begin, which
        are left out, and why.
        """
        if not self._changed:
            return []
        self._changed = False
        failed: list[tuple[list[int], BaseException]] = []
        lanes: list[Lane] = []
        for names in self._groups():
            old: list[Lane] = []
            new: list[Lane] = []
            for part in self._taken_out(names):
                (new if part.new else old).append(part)
            if new:
                begun = _one(new)
                try:
                    begun.begin()
                except BaseException as error:
                    failed.append((begun.names, error))
                else:
                    old.append(begun)
            if old:
                lanes.append(_one(old))
        self._lanes = lanes
        return failed

    def _groups(self) -> list[set[int]]:
        """The names of the rows of each lane that there should be."""
        rows = [row for lane in self._lanes for row in lane.rows]
        if len(rows) < 2:
            self._room.padding = 0.0
            return [{row.name} for row in rows]
        longest = max(self._lanes, key=lambda lane: max(row.length for row in lane.rows))
        widths = _widths(longest.caches)

        def held(length: int) -> float:
            return sum(width * min(length, most) for most, width in widths.items())

        lengths = [row.length for row in rows]
        allowed = self._room.padding + self._room.spare
        lane = SHARE * self._reading
        while True:
            groups = groups_of(lengths, held, lane)
            padding = sum(
                held(max(lengths[i] for i in group)) - held(lengths[one])
                for group in groups
                for one in group
            )
            if padding <= max(allowed, 0):  # at the latest, each is in a lane of its own
                break
            lane /= 4
        self._room.padding = padding
        return [{rows[i].name for i in group} for group in groups]

    def _taken_out(self, names: Collection[int]) -> Iterator[Lane]:
        """Lanes of these rows alone, which are in no others any more."""
        for lane in self:
            chosen = [name for name in lane.names if name in names]
            if len(chosen) == len(lane.names):
                self._lanes.remove(lane)
                yield lane
            elif chosen:
                yield lane.part(chosen)

    @cached_property
    def _reading(self) -> int:
        """Bytes of the decoder's weights."""
        arrays: dict[str, mx.array] = dict(tree_flatten(self._model.parameters()))
        return sum(array.nbytes for array in arrays.values())


def groups_of(lengths: Sequence[int], held: Callable[[int], float], lane: float) -> list[list[int]]:
    """Indices of rows of these lengths, in the lanes that together count for the fewest bytes.

    A lane counts for `lane` bytes, and each of its rows for what one as long as its longest has
    `held`. Only rows that are next to each other by length belong together.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best: list[tuple[float, int]] = [(0.0, 0)]
    """Of the shortest so many rows: what they count for, and where their last lane starts."""
    for end, longest in enumerate(order, 1):
        row = held(lengths[longest])
        best.append(min((best[i][0] + lane + (end - i) * row, i) for i in range(end)))
    groups = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups


def _widths(caches: Sequence[Any]) -> dict[float, float]:
    """Bytes by which a row's caches grow with each token, by how many tokens they grow to at most.

    Those without keys, as of state space models, are as large for every length.
    """
    widths: dict[float, float] = {}
    for cache in caches:
        keys: mx.array | None = getattr(cache, "keys", None)
        if hasattr(cache, "caches"):  # several of one layer
            grown = _widths(cache.caches)
        elif keys is not None:
            places = keys.shape[0] * keys.shape[-2]  # rows, and tokens that there is room for
            grown = {getattr(cache, "max_size", math.inf): cache.nbytes / places}
        else:
            continue
        for most, width in grown.items():
            widths[most] = widths.get(most, 0) + width
    return widths


def _one(lanes: Sequence[Lane]) -> Lane:
    first, *others = lanes
    if others:
        first.extend(others)
    return first
