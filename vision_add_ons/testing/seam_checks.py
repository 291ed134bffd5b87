"""The seam: the decoder is handed the text's own embeddings, with the rows in their places."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from vision_add_ons.base import VisionAddOn
from vision_add_ons.testing.comparison import TOLERANCE, centred, numbers, relative_error
from vision_add_ons.testing.kit import Kit, ask
from vision_add_ons.testing.vocabulary import BOS
from vision_add_ons.testing.watching import Merge


def merge_of(kit: Kit, name: str) -> Merge:
    """What `compute_embeddings` does for a prompt with two pictures."""
    case = kit.case(name)
    engine, watch = kit.watched
    prompt = [BOS, *case.words(3), case.image(), *case.words(3), case.image(1), *case.words(4)]
    ask(engine, prompt, kit.reference)
    return watch.merges[-1]


def check_text_embeddings(kit: Kit) -> None:
    """`embed_tokens` gives what the decoder itself makes of token ids: handed over in their place,
    they lead to the same logits."""
    case = kit.case("text embeddings")
    tokens = mx.array([BOS, *case.words(20)])
    found: list[np.ndarray] = []

    def both(add_on: VisionAddOn, text_model: nn.Module) -> None:
        rows = add_on.embed_tokens(text_model, tokens)[None]
        for given in ({}, {"input_embeddings": rows}):
            cache = make_prompt_cache(text_model)
            found.append(numbers(text_model(tokens[None], cache=cache, **given)[0]))

    engine, watch = kit.watched
    watch.at_decoder = both
    try:
        ask(engine, [BOS, *case.words(3), case.image(), *case.words(3)], kit.reference)
    finally:
        watch.at_decoder = None
    looked_up, handed_over = map(centred, found)
    error = relative_error(handed_over, looked_up)
    case.note("logits", error)
    assert error <= TOLERANCE, (
        f"a text as the embeddings of embed_tokens has logits that are {error:.1e} off those of "
        "the same text as token ids: embed_tokens must give what the decoder takes as "
        "input_embeddings. Look at what its model does to embeddings that it looks up itself (a "
        "factor, a norm, parts that it finds by the token ids), and whether it does so again to "
        "those that it is given"
    )


def check_embeddings(kit: Kit) -> None:
    """Text has the decoder's own embeddings, placeholders have the rows, in their order."""
    merge = merge_of(kit, "embeddings")
    if merge.embeddings is None:
        return  # what its views bring, the logits show
    placeholder = kit.eyes.placeholder_id
    inside = np.zeros(len(merge.tokens), bool)
    for span in merge.spans:
        inside[span.start : span.end] = True
    places = inside & (np.array(merge.tokens) == placeholder)
    assert merge.embeddings.shape == merge.looked_up.shape, (
        f"input_embeddings have shape {merge.embeddings.shape}, and the tokens' own "
        f"{merge.looked_up.shape}"
    )
    for token, row in zip(np.array(merge.tokens)[~places], merge.looked_up[~places], strict=True):
        assert row.any(), (
            f"the embedding of token {token} is zero, so that nothing shows whether it is in its "
            "place: the reference's weights must be random there, too (see random_weights)"
        )
    assert [one.picture for one in merge.rows] == [span.picture for span in merge.spans], (
        "compute_embeddings must ask `encode` once for each span, in their order: rows that it "
        "makes otherwise are not kept for later requests"
    )
    changed = np.nonzero(~places & (merge.embeddings != merge.looked_up).any(axis=1))[0]
    assert not len(changed), (
        f"the text token at {changed[0]} has other embeddings than the decoder's own: only "
        "placeholders may be replaced"
    )
    width = merge.embeddings.shape[1]
    rows = np.concatenate([one.before[:, :width] for one in merge.rows])
    assert np.array_equal(merge.embeddings[places], rows), (
        "the embeddings at the placeholders are not the pictures' rows in the order of the spans"
    )


def check_nothing_is_changed_in_place(kit: Kit) -> None:
    """Rows are kept for later requests, and token ids and the decoder's weights are not ours."""
    merge = merge_of(kit, "nothing is changed in place")
    for one in merge.rows:
        assert one.after is not None
        assert np.array_equal(one.before, one.after), (
            "compute_embeddings changes the rows that `encode` gave it, which are kept for later "
            "requests: MLX's `*=` and item assignment change an array in place, so take a copy"
        )
    assert merge.tokens == merge.tokens_after, "compute_embeddings changes prompt_tokens in place"
    assert np.array_equal(merge.looked_up, merge.looked_up_after), (
        "the decoder's embeddings are others after compute_embeddings than before"
    )
