"""Positions of MiniCPM-V 4.7: a picture is a canvas, on which its slices lie where they were cut.

Semantics: `get_rope_index` of transformers' `MiniCPMV4_7Model`. Text counts on the three axes of
`mrope` at once. All of a picture shares one time. The view of the whole is stretched over the
canvas, and the tokens around views lie on corners and edges.
"""

from collections.abc import Collection, Sequence

import numpy as np

from vision_add_ons.mrope import AxisPositions
from vision_add_ons.picture_sizes import Size


class Canvas:
    """One picture: the tokens of its block, counted from the canvas's upper left corner."""

    def __init__(self, whole: Size, grid: Size, each: Size, line_end: int = 1) -> None:
        """Lines and columns of the whole picture's rows, of slices, and of each slice's rows.

        `line_end` is how many tokens stand between two lines of slices.
        """
        height, width = (n * size for n, size in zip(grid, each, strict=True))
        self.sides = (height, width) if grid[0] else whole
        """Lines and columns of the canvas."""
        height, width = self.sides
        down, across = (stretched(*sides) for sides in zip(whole, self.sides, strict=True))
        parts = [(-1, -1), *_all(down, across), (height, width)]
        for line in range(grid[0]):
            parts += [(line * each[0] - 1, width)] * line_end if line else []
            for column in range(grid[1]):
                top, left = line * each[0], column * each[1]
                rows = _all(top + np.arange(each[0]), left + np.arange(each[1]))
                parts += [(top, left), *rows, (top + each[0] - 1, left + each[1] - 1)]
        self.places = np.array(parts, np.int32).T
        """The line and the column of each token: [2, tokens]."""


class CanvasPositions(AxisPositions):
    """The positions of a prompt's tokens."""

    def __init__(
        self,
        tokens: Sequence[int],
        pictures: Sequence[tuple[int, Canvas]],
        markers: Collection[int],
    ) -> None:
        """`pictures` are the indices at which their blocks begin, in ascending order, with what
        they are; `markers` the tokens that lie on the corner if they directly follow one."""
        ids = np.empty((3, len(tokens)), np.int32)
        index = position = 0
        for start, canvas in pictures:
            text = max(start - index, 0)
            ids[:, index : index + text] = np.arange(position, position + text)
            position += text
            index = start + canvas.places.shape[1]
            ids[0, start:index] = position
            ids[1:, start:index] = np.maximum(canvas.places + position, 0)
            while index < len(tokens) and tokens[index] in markers:
                ids[:, index] = position
                index += 1
            position += max(canvas.sides) + 1
        ids[:, index:] = np.arange(position, position + len(tokens) - index)
        super().__init__(ids, position - index)


def stretched(count: int, over: int) -> np.ndarray:
    """Where so many lines lie that are spread evenly over others, by the nearest of these.

    From the middle on counted from the end, as the reference does in float32, whose rounding
    decides what lies between two.
    """
    step = np.float32(over - 1) / np.float32(max(count - 1, 1))
    numbers = np.arange(count, dtype=np.float32)
    from_end = np.float32(over - 1) - step * (np.float32(count - 1) - numbers)
    places = np.where(numbers < count // 2, step * numbers, from_end)
    return np.rint(places if count > 1 else np.zeros(1)).astype(np.int32)


def _all(down: np.ndarray, across: np.ndarray) -> list[tuple[int, int]]:
    return [(line, column) for line in down.tolist() for column in across.tolist()]
