"""Prompts: where pictures' tokens stand, and that their number and that of their places agree."""

import re

from vision_add_ons.base import ExpandedPrompt, VisionAddOn
from vision_add_ons.errors import ImageCountError
from vision_add_ons.testing.kit import Kit
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.reference import Part
from vision_add_ons.testing.vocabulary import BOS, WORDS


def expand(kit: Kit, prompt: list[Part]) -> ExpandedPrompt:
    """A prompt expanded by the add-on alone."""
    reference = kit.reference
    pictures = [Photo.of(part) for part in prompt if not isinstance(part, int)]
    tokens: list[int] = []
    positions: list[int] = []
    for part in prompt:
        if isinstance(part, int):
            tokens.append(part)
        elif reference.image_token is not None:
            tokens.append(reference.image_token)
        else:
            positions.append(len(tokens))
    marked = reference.image_token is not None
    return kit.eyes.expand_prompt(tokens, pictures, None if marked else positions)


def check_places(kit: Kit) -> None:
    """Spans hold the pictures' tokens, in their order, whatever stands around them."""
    case = kit.case("places")
    first, second, third = (case.image(i) for i in (0, 1, 2))
    prompts: list[list[Part]] = [
        [BOS, first, *case.words(4)],
        [BOS, first, second, *case.words(3), third],
        [BOS, *case.words(4), second, *case.words(2), first, *case.words(3)],
        [BOS, first, *case.words(2), third, *case.words(2), second, *case.words(1)],
        [BOS, *case.words(2), second, *case.words(1), second, *case.words(4)],
    ]
    for prompt in prompts:
        expected, images = kit.reference.expanded(prompt)
        ours = expand(kit, prompt)
        if kit.reference.image_token is not None:
            assert ours.tokens == expected, (
                f"expand_prompt makes {ours.tokens}, and the reference has {expected}"
            )
        assert len(ours.tokens) == len(expected), (
            f"expand_prompt makes {len(ours.tokens)} tokens, and the reference has {len(expected)}"
        )
        seen = [span.picture.digest for span in ours.spans]
        assert seen == [Photo.of(image).digest for image in images], (
            "the spans' pictures are not the prompt's, in the order of their places"
        )
        check_spans(kit.eyes, ours)
        _check_ranges(ours)


def check_spans(eyes: VisionAddOn, prompt: ExpandedPrompt) -> None:
    """Each span holds its picture's tokens, one after the other.

    `eyes` are of the checkpoint that the prompt is for: a block may hold what its tokenizer makes.
    """
    done = 0
    for span in prompt.spans:
        block = eyes.picture_tokens(span.picture)
        inside = prompt.tokens[span.start : span.end]
        assert span.start >= done, f"the span at {span.start} begins within the one before it"
        assert inside == block, (
            f"the span {span.start}..{span.end} holds {inside}, but the picture's tokens are "
            f"{block}: a span begins where its tokens do and is as long as they are"
        )
        done = span.end


def _check_ranges(prompt: ExpandedPrompt) -> None:
    done = 0
    for start, end in prompt.bidirectional:
        assert done <= start < end <= len(prompt.tokens), (
            f"bidirectional ranges {prompt.bidirectional} must ascend within the prompt's "
            f"{len(prompt.tokens)} tokens"
        )
        done = end


def check_counts_that_disagree(kit: Kit) -> None:
    """More places than pictures, or fewer: an `ImageCountError` that tells both numbers."""
    reference = kit.reference
    photo = Photo.of(kit.case("counts").image())
    for places, given in ((0, 1), (1, 0), (1, 2), (3, 2)):
        if not places and reference.places_pictures:
            continue
        what = f"a prompt with {places} places and {given} pictures"
        told = ""
        try:
            if reference.image_token is not None:
                tokens = [BOS, *[reference.image_token] * places, WORDS[0]]
                kit.engine.generate(tokens, images=[photo.image] * given)
            else:
                kit.eyes.expand_prompt([BOS, WORDS[0]], [photo] * given, [1] * places)
        except ImageCountError as error:
            told = str(error)
        assert told, f"{what} was accepted: expand_prompt must raise ImageCountError"
        assert {str(places), str(given)} <= set(re.findall(r"\d+", told)), (
            f"{what}: the error must tell both numbers, but says: {told}"
        )
