"""Tiny checkpoints of families that see, in all forms, and one answer of each as logits."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from engine.images import load_picture
from model_kit import ModelKit
from support import moxin_checkpoint as moxin
from support.gemma3_reference import Gemma3Reference
from support.idefics3_reference import Idefics3Reference
from support.pixtral_reference import PixtralReference
from support.qwen2_vl_reference import Qwen2VLReference
from vision_add_ons.testing import BOS, WORDS, Photo, Reference, write_tokenizer, written

Write = Callable[[Path, int], Path]


def _moxin(form: str) -> Write:
    def write(folder: Path, seed: int) -> Path:
        tensors = moxin.random_parts(seed).named(moxin.FORMS[form])
        moxin.write(folder, tensors, moxin.config())
        write_tokenizer(folder)
        return folder

    return write


def _family(reference: type[Reference], dialect: str) -> Write:
    return lambda folder, seed: written(reference(seed), folder, dialect)


FORMS: dict[str, Write] = {f"moxin {form}": _moxin(form) for form in moxin.FORMS}
FORMS |= {
    f"{reference.name} {dialect}": _family(reference, dialect)
    for reference in (Gemma3Reference, Idefics3Reference, PixtralReference, Qwen2VLReference)
    for dialect in reference.dialects
}
"""By family and form, what writes a checkpoint into a folder."""

ONE_FORM_EACH = ("moxin hf", *dict.fromkeys(n for n in FORMS if n.endswith("transformers 5")))


def prompt_logits(kit: ModelKit, seed: int, sees: bool = True) -> np.ndarray:
    """Logits [prompt, vocabulary] of words around a picture, or of the words alone."""
    rng = np.random.default_rng(seed)
    words = [int(w) for w in rng.integers(WORDS.start, WORDS.stop, 12)]
    tokens, spans, caches, extra = [BOS, *words], (), kit.make_cache(), {}
    assert kit.text_model is not None
    if sees:
        add_on = kit.add_on
        assert add_on is not None
        picture = load_picture(Photo(40, 30, seed).image)
        if add_on.image_token_id is None:
            prompt = add_on.expand_prompt(tokens, [picture], [1])
        else:
            tokens.insert(4, add_on.image_token_id)
            prompt = add_on.expand_prompt(tokens, [picture])
        tokens, spans = prompt.tokens, prompt.spans
        caches = add_on.cache_views(caches, prompt)
        rows = add_on.compute_embeddings(kit.text_model, mx.array(tokens), spans)
        extra = {"input_embeddings": rows.input_embeddings[None]}
    logits = kit.text_model(mx.array(tokens)[None], cache=caches, **extra)
    return np.array(logits[0].astype(mx.float32))
