"""Special tokens: a tokenizer that lacks one is refused by its text, or is served all the same."""

from vision_add_ons.errors import CheckpointError
from vision_add_ons.testing.kit import Kit, NothingToCheck, opened
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.row_checks import DRAWN, brief, pictures_of
from vision_add_ons.testing.vocabulary import write_tokenizer


def check_missing_tokens(kit: Kit) -> None:
    """A tokenizer that lacks a special token is refused, unless the id is from elsewhere.

    `<unk>`, or whatever else such a tokenizer makes of the token's text, must not take its place.
    """
    special = kit.reference.special_tokens
    if not special:
        raise NothingToCheck("the reference has no `special_tokens`")
    photos = [Photo.of(image) for image in pictures_of(kit.case("missing tokens"), DRAWN)]
    expected = [kit.eyes.picture_tokens(photo) for photo in photos]
    for missing, (_, text) in special.items():
        folder = kit.changed({})
        write_tokenizer(
            folder, special={name: one for name, one in special.items() if name != missing}
        )
        what = f"{text} is not in the tokenizer"
        eyes, told = opened(kit, folder, what)
        if eyes is None:
            assert text in told, f"{what}: the error must name it, but says: {told}"
            continue
        for photo, tokens in zip(photos, expected, strict=True):
            try:
                found = eyes.picture_tokens(photo)
            except CheckpointError as error:
                raise AssertionError(
                    f"{what}, and a picture is what tells ({error}): refuse the checkpoint when it "
                    "is loaded"
                ) from error
            assert found == tokens, (
                f"{what}, and a picture becomes {brief(found)} instead of {brief(tokens)}: a "
                "tokenizer makes <unk>, or something else, of a text that it does not know, so "
                "look whether the token is there, and raise BrokenTokenizer if it is not"
            )
