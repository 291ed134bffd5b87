"""The seam: the decoder is handed the text's own embeddings, with the rows in their places."""

import numpy as np

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


def check_embeddings(kit: Kit) -> None:
    """Text has the decoder's own embeddings, placeholders have the rows, in their order."""
    merge = merge_of(kit, "embeddings")
    placeholder = kit.eyes.placeholder_id
    inside = np.zeros(len(merge.tokens), bool)
    for span in merge.spans:
        inside[span.start : span.end] = True
    places = inside & (np.array(merge.tokens) == placeholder)
    assert merge.embeddings.shape == merge.looked_up.shape, (
        f"input_embeddings have shape {merge.embeddings.shape}, and the tokens' own "
        f"{merge.looked_up.shape}"
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
    rows = np.concatenate([one.before for one in merge.rows])
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
