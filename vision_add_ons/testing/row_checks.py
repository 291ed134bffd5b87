"""Rows: what a picture becomes, and that every count of them agrees."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.testing.comparison import TOLERANCE, numbers, relative_error
from vision_add_ons.testing.drawn_pictures import drawn_pictures
from vision_add_ons.testing.kit import Case, Kit
from vision_add_ons.testing.photo import Photo

DRAWN = 12
"""Pictures of drawn sizes whose tokens are compared; the rows of a third of them."""


def pictures_of(case: Case, drawn: int) -> list[Image.Image]:
    """One of each of the reference's sizes, and so many of drawn ones."""
    reference = case.kit.reference
    named = [case.image(i) for i in range(len(reference.sizes) + len(reference.more_sizes))]
    return [*named, *drawn_pictures(case, case.kit.eyes, drawn)]


def check_rows(kit: Kit) -> None:
    """The rows of pictures are the reference's, whatever their sizes."""
    case = kit.case("rows")
    eyes = kit.eyes
    photos = [Photo.of(image) for image in pictures_of(case, DRAWN // 3)]
    _compare_rows(case, photos, [eyes.encode_image(photo) for photo in photos], "")
    if eyes.images_at_once > 1:
        photos = photos[: eyes.images_at_once]
        _compare_rows(case, photos, eyes.encode_images(photos), " among others")


def _compare_rows(
    case: Case, photos: Sequence[Photo], encoded: Sequence[mx.array], among: str
) -> None:
    reference = case.kit.reference
    for photo, array in zip(photos, encoded, strict=True):
        rows = numbers(array) * reference.decoder_scale
        expected = reference.rows(photo.image)
        what = f"{photo.size[0]}x{photo.size[1]}"
        assert rows.shape == expected.shape, (
            f"a picture of {what} pixels gives rows of shape {rows.shape}, and {expected.shape} by "
            "the reference: look at the size that preprocessing brings it to"
        )
        error = relative_error(rows, expected)
        case.note(f"{what}{among}", error)
        assert error <= TOLERANCE, (
            f"rows of a picture of {what} pixels{among} are off by {error:.1e}, where "
            f"{TOLERANCE:.0e} is allowed: compare the pixels first (mean, std, resampling), then "
            "the tower's layers one by one, then the projector, then the scale"
        )


def check_rows_follow_the_pixels(kit: Kit) -> None:
    """Two pictures of one size have rows of their own, and the first the same ones again."""
    case = kit.case("rows of look-alikes")
    width, height = kit.reference.sizes[0]
    one, other = case.photo(width, height), case.photo(width, height)
    first = numbers(kit.eyes.encode_image(one))
    second = numbers(kit.eyes.encode_image(other))
    again = numbers(kit.eyes.encode_image(one))
    assert not np.array_equal(first, second), (
        "two pictures of one size have the same rows: nothing may be kept by a picture's size"
    )
    assert np.array_equal(first, again), (
        "a picture's rows change when it is encoded again: the add-on keeps state between pictures"
    )


def check_row_counts(kit: Kit) -> None:
    """`row_count`, the placeholders of `picture_tokens` and the rows agree, and the reference."""
    case = kit.case("row counts")
    reference, eyes = kit.reference, kit.eyes
    for image in pictures_of(case, DRAWN):
        photo = Photo.of(image)
        what = f"a picture of {photo.size[0]}x{photo.size[1]} pixels"
        tokens = eyes.picture_tokens(photo)
        rows = eyes.encode_image(photo)
        mx.eval(rows)
        assert rows.ndim == 2, f"{what} gives rows of shape {rows.shape}, not [rows, hidden_size]"
        assert eyes.row_count(photo) == rows.shape[0], (
            f"row_count says {eyes.row_count(photo)} for {what}, but encode_image makes "
            f"{rows.shape[0]} rows"
        )
        marks = tokens.count(eyes.placeholder_id)
        assert marks == rows.shape[0], (
            f"picture_tokens has {marks} placeholders ({eyes.placeholder_id}) for the "
            f"{rows.shape[0]} rows of {what}"
        )
        expected = reference.block(photo.image)
        if reference.image_token is not None:
            assert tokens == expected, (
                f"{what} stands in the prompt as {brief(tokens)}, and as {brief(expected)} by "
                "the reference"
            )
        assert len(tokens) == len(expected), (
            f"{what} takes {len(tokens)} tokens of the prompt, and {len(expected)} by the reference"
        )


def brief(tokens: list[int]) -> str:
    """How many tokens, and the first of them."""
    shown = ", ".join(map(str, tokens[:12]))
    return f"{len(tokens)} tokens [{shown}{', ...' if len(tokens) > 12 else ''}]"
