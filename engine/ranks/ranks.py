"""The processes of one launch, and what they agree on."""

import os
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from vision_add_ons.errors import RanksLost

if TYPE_CHECKING:
    import mlx.core as mx

T = TypeVar("T")

VARIABLE = "MLX_RANK"
"""What MLX's launcher tells each process that it starts, whatever the back end."""

SHORT = 252
"""Bytes of what is agreed on in one exchange; longer ones take two."""


def launched() -> bool:
    """Whether MLX's launcher started this process, as one of several."""
    return VARIABLE in os.environ


def follows() -> bool:
    """Whether it is one of those that do what another one is asked."""
    return os.environ.get(VARIABLE, "0") != "0"


class Ranks:
    """This process and the others. For one thread of each.

    All of them do the same in the same order; what only one can know, rank 0 tells the others.
    """

    def __init__(self) -> None:
        """Raises `RanksLost` where the others are not reached."""
        import mlx.core as mx

        try:
            self.group: Any = mx.distributed.init(strict=True)
        except RuntimeError as error:
            raise RanksLost(f"the other ranks are not reached: {error}") from error
        self.rank: int = self.group.rank()
        self.size: int = self.group.size()
        self.lost: RanksLost | None = None
        """Why nothing can be exchanged any more: MLX may wait for ever for who is gone."""
        self.beat: Callable[[], None] = lambda: None
        """Called at each exchange: who waits for the others sees that they go on."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which everybody talks to."""
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank. Raises `RanksLost` where one of them is gone."""
        return self._of(0, value)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank. Raises `RanksLost` as `agree`."""
        return [self._of(rank, value) for rank in range(self.size)]

    def _of(self, rank: int, value: T) -> T:
        if self.lost is not None:
            raise self.lost
        self.beat()
        data = pickle.dumps(value) if self.rank == rank else b""
        begun = len(data).to_bytes(4, "little") + data[:SHORT] if data else b""
        head = self._sum(begun, 4 + SHORT)
        length = int.from_bytes(head[:4], "little")
        told = head[4:] if length <= SHORT else self._sum(data, length)
        told_value: T = value if self.rank == rank else pickle.loads(told[:length])
        return told_value

    def _sum(self, data: bytes, size: int) -> bytes:
        """The bytes of the one rank that has any: the others add nothing to them."""
        import mlx.core as mx
        import numpy as np

        whole = np.zeros(size, np.uint8)
        if any(data):
            whole[: len(data)] = np.frombuffer(data, np.uint8)
        try:
            return bytes(np.array(mx.distributed.all_sum(mx.array(whole), group=self.group)))
        except RuntimeError as error:
            self.lost = RanksLost(f"a rank of this model is gone: {error}")
            raise self.lost from error

    def share(self, array: "mx.array") -> "mx.array":
        """Rank 0's array, on every rank, once it is computed; of integers."""
        import mlx.core as mx

        mine = array if self.leads else mx.zeros_like(array)
        return mx.distributed.all_sum(mine, group=self.group)
