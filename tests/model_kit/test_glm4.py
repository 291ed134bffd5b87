"""GLM-4 as a text model: against transformers, and against mlx-lm's own class."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models import glm4 as plain
from mlx_lm.models.cache import make_prompt_cache
from support import tiny
from transformers import Glm4Config, Glm4ForCausalLM

from model_kit import glm4, load_model_kit
from vision_add_ons.testing import TOLERANCE, VOCAB, WORDS, relative_error

SIZES: dict[str, Any] = {n: v for n, v in tiny.SIZES.items() if n != "sliding_window"}
SIZES |= {"vocab_size": VOCAB, "attention_bias": True}


def test_exact(tmp_path: Path, seed: int) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = Glm4Config(**SIZES, rope_parameters=rope, attn_implementation="eager")
    model = tiny.randomize(Glm4ForCausalLM(config), seed)
    tiny.save_of_few_words(model, tmp_path)
    tokens = np.random.default_rng(seed).choice(WORDS, 60).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    decoder: Any = load_model_kit(tmp_path).text_model
    ours = np.array(decoder(mx.array([tokens]))[0])
    assert relative_error(ours, expected) <= TOLERANCE


def test_it_is_mlx_lm_s_with_embeddings(seed: int) -> None:
    fields = {
        **SIZES,
        "model_type": "glm4",
        "partial_rotary_factor": 0.5,
        "rope_theta": 1e4,
    }
    mx.random.seed(seed)
    theirs = plain.Model(plain.ModelArgs.from_dict(fields))
    ours = glm4.Model(glm4.ModelArgs.from_dict(fields))
    ours.update(theirs.parameters())
    tokens = mx.array([[*WORDS[:20]]])
    expected = theirs(tokens, cache=make_prompt_cache(theirs))
    assert mx.array_equal(ours(tokens, cache=make_prompt_cache(ours)), expected)
    embeddings = ours.model.embed_tokens(tokens)
    given = ours(mx.zeros_like(tokens), input_embeddings=embeddings)
    assert mx.array_equal(given, theirs(tokens))
