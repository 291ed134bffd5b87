"""Memory: a picture may be cut into pieces, and takes no more than the add-on tells beforehand."""

import gc
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx

from vision_add_ons.testing.comparison import TOLERANCE, numbers, relative_error
from vision_add_ons.testing.kit import Kit, NothingToCheck
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.row_checks import pictures_of
from vision_add_ons.vit_blocks import Cutting

TINY = Cutting(rows=8, scores=2**10, lazy=1)
"""Cuts that make pieces of the smallest picture, and of attention a few queries at once."""
DRAWN = 2
"""Pictures of drawn sizes, beside the reference's own."""


def check_pieces(kit: Kit, drawn: int = DRAWN) -> None:
    """A picture that is cut into pieces has the rows that it has in one.

    So many pictures of drawn sizes are cut, beside the reference's own.
    """
    case = kit.case("pieces")
    cut = kit.look(kit.folder)
    if not isinstance(getattr(cut, "cutting", None), Cutting):
        raise NothingToCheck("the add-on has no `cutting`, so it is not asked to cut pictures")
    cut.cutting = TINY  # type: ignore[attr-defined]
    for image in pictures_of(case, drawn):
        photo = Photo.of(image)
        expected, rows = (numbers(eyes.encode_image(photo)) for eyes in (kit.eyes, cut))
        what = f"a picture of {image.size[0]}x{image.size[1]} pixels"
        assert rows.shape == expected.shape, (
            f"{what} gives rows of shape {expected.shape}, and cut into pieces {rows.shape}"
        )
        error = relative_error(rows, expected)
        case.note(what, error)
        assert error <= TOLERANCE, (
            f"cut into pieces, rows of {what} are off by {error:.1e}, where {TOLERANCE:.0e} is "
            "allowed: look at what a row takes of other rows (attention must see the keys of all "
            "pieces), and at the tables of each piece"
        )


def check_memory(kit: Kit, drawn: int = DRAWN) -> None:
    """Pictures take no more bytes beside the weights than `tower_bytes` says: the reference's own,
    and so many of drawn sizes.

    How much less they take is not asked: the reference's small tower takes less than what MLX
    needs in any case.
    """
    case = kit.case("memory")
    for image in pictures_of(case, drawn):
        photo = Photo.of(image)
        with ThreadPoolExecutor(1) as another:  # who asks is not the one who computes
            told = another.submit(kit.eyes.tower_bytes, photo.size).result()
        if told is None:
            raise NothingToCheck("the add-on does not tell `tower_bytes`")
        mx.eval(kit.eyes.encode_image(photo))  # reads the weights, if it is the first
        gc.collect()
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(kit.eyes.encode_image(photo))
        taken = mx.get_peak_memory() - before
        assert taken <= told, (
            f"a picture of {image.size[0]}x{image.size[1]} pixels takes {taken:,} bytes, but "
            f"tower_bytes says {told:,}: graph_bytes tells what a part of the tower takes; "
            "several parts that are evaluated at once take the sum"
        )
