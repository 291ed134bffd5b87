"""Text alone: to the last bit what the decoder says by itself, before pictures and after."""

import numpy as np

from vision_add_ons.testing.kit import Answered, Kit, ask
from vision_add_ons.testing.vocabulary import BOS, WORDS


def check_text_is_left_alone(kit: Kit) -> None:
    """A fresh engine, the same after a picture, and one that loaded the text half alone."""
    case = kit.case("text alone")
    # With nothing in common: what the cache holds of one would serve the other.
    first, second = ([WORDS[i], *case.words(38)] for i in (0, 1))
    engine = kit.open(kit.folder)
    before = ask(engine, first, kit.reference)
    ask(engine, [BOS, case.image(), *case.words(5)], kit.reference)
    after = ask(engine, second, kit.reference)
    alone = kit.load(kit.folder, decoder_only=True, add_on=kit.add_on)
    try:
        _must_be_alike(before, ask(alone, first, kit.reference), "before any picture")
        _must_be_alike(after, ask(alone, second, kit.reference), "after a picture")
    finally:
        alone.close()


def _must_be_alike(ours: Answered, alone: Answered, when: str) -> None:
    assert ours.end.cached_tokens == 0, "the text was in the cache: this check compares nothing"
    assert np.array_equal(ours.logits, alone.logits), (
        f"{when}, text has other logits than with the decoder alone: what prepare_decoder puts "
        "into the decoder must hand plain text through unchanged, and keep nothing of a request"
    )
    assert ours.tokens == alone.tokens
