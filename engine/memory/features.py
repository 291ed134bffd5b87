"""The rows of pictures that were encoded before, for any conversation."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from engine.memory.budget import Budget
from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.errors import NumericalError


@dataclass(eq=False)
class _Rows:
    array: mx.array
    nbytes: int
    owned = False
    """A conversation's KV cache holds what it needs of them."""


class FeatureCache:
    """Encodes pictures, each once as long as the budget lasts. For the engine's thread alone."""

    def __init__(self, add_on: VisionAddOn | None, budget: Budget) -> None:
        self._add_on = add_on
        self._budget = budget
        self._rows: dict[str, _Rows] = {}
        self.nbytes = 0
        self.encoded = 0
        self.reused = 0

    def __len__(self) -> int:
        return len(self._rows)

    def knows(self, digest: str) -> bool:
        """Whether the rows of the picture with this digest are there."""
        return digest in self._rows

    def encode(self, picture: Picture) -> mx.array:
        """The picture's rows, [row_count, hidden_size], evaluated.

        Raises `NumericalError` if not all are finite; such rows are not kept.
        """
        known = self._rows.get(picture.digest)
        if known is not None:
            self._budget.touch(known)
            self.reused += 1
            return known.array
        return self.encode_all([picture])[0]

    def encode_all(self, pictures: Sequence[Picture]) -> list[mx.array]:
        """The rows of several pictures, none of which is known, as `encode` has those of each.

        If it fails, none of them is kept.
        """
        assert self._add_on is not None
        rows = self._add_on.encode_images(pictures)
        if not mx.stack([mx.isfinite(each).all() for each in rows]).all():
            raise NumericalError(
                "the vision add-on made rows of NaN or infinity of an image: its weights are "
                "damaged, or too large for their dtype; fetch the model again, or convert it to "
                "bfloat16"
            )
        self.encoded += len(rows)
        for picture, each in zip(pictures, rows, strict=True):
            self._keep(picture.digest, each)
        return rows

    def _keep(self, digest: str, rows: mx.array) -> None:
        kept = self._rows[digest] = _Rows(rows, rows.nbytes)
        self.nbytes += kept.nbytes
        self._budget.add(kept, lambda: self._forget(digest))

    def _forget(self, digest: str) -> None:
        self.nbytes -= self._rows.pop(digest).nbytes
