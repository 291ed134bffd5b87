"""GLM-4 as a text model: against transformers, and against mlx-lm's own classes."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models import glm4 as plain_glm4
from mlx_lm.models import glm4_moe as plain_glm4_moe
from mlx_lm.models.cache import make_prompt_cache
from support import tiny
from transformers import Glm4Config, Glm4ForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM

from model_kit import glm4, glm4_moe, load_model_kit
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.testing import TOLERANCE, VOCAB, WORDS, relative_error

ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
SIZES: dict[str, Any] = {n: v for n, v in tiny.SIZES.items() if n != "sliding_window"}
SIZES |= {"vocab_size": VOCAB, "attention_bias": True}
EXPERTS: dict[str, Any] = {
    **SIZES,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "use_qk_norm": True,
    "tie_word_embeddings": False,
}
KINDS = ("glm4", "glm4_moe")


def written(folder: Path, seed: int, kind: str) -> Any:
    """A random model of transformers, and its folder."""
    options: dict[str, Any] = {"rope_parameters": ROPE, "attn_implementation": "eager"}
    if kind == "glm4":
        model: Any = Glm4ForCausalLM(Glm4Config(**SIZES, **options))
    else:
        model = Glm4MoeForCausalLM(Glm4MoeConfig(**EXPERTS, **options))
    tiny.save_of_few_words(tiny.randomize(model, seed), folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_exact(kind: str, tmp_path: Path, seed: int) -> None:
    model = written(tmp_path, seed, kind)
    tokens = np.random.default_rng(seed).choice(WORDS, 60).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    decoder: Any = load_model_kit(tmp_path).text_model
    ours = np.array(decoder(mx.array([tokens]))[0])
    assert relative_error(ours, expected) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_mlx_lm_s_with_embeddings(kind: str, seed: int) -> None:
    plain, own = (plain_glm4, glm4) if kind == "glm4" else (plain_glm4_moe, glm4_moe)
    fields = {
        **EXPERTS,
        "model_type": kind,
        "partial_rotary_factor": 0.5,
        "rope_theta": 1e4,
        "rope_scaling": None,
    }
    mx.random.seed(seed)
    theirs: Any = plain.Model(plain.ModelArgs.from_dict(fields))
    ours: Any = own.Model(own.ModelArgs.from_dict(fields))
    ours.update(theirs.parameters())
    tokens = mx.array([[*WORDS[:20]]])
    expected = theirs(tokens, cache=make_prompt_cache(theirs))
    assert mx.array_equal(ours(tokens, cache=make_prompt_cache(ours)), expected)
    embeddings = ours.model.embed_tokens(tokens)
    given = ours(mx.zeros_like(tokens), input_embeddings=embeddings)
    assert mx.array_equal(given, theirs(tokens))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_group", 2),
        ("num_experts_per_tok", 1),
        ("num_experts_per_tok", 7),
        ("rope_parameters", {**ROPE, "rope_type": "linear", "factor": 2.0}),
    ],
)
def test_what_mlx_lm_would_compute_otherwise(
    field: str, value: Any, tmp_path: Path, seed: int
) -> None:
    written(tmp_path, seed, "glm4_moe")
    tiny.edit_config(tmp_path, **{field: value})
    with pytest.raises(UnsupportedCheckpoint, match=field.replace("parameters", "scaling")):
        load_model_kit(tmp_path)
