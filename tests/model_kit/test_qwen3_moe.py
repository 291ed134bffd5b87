"""Qwen3 with experts as a text model, against transformers."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models import qwen3_moe as plain
from support import tiny
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from model_kit import load_model_kit, qwen3_moe
from vision_add_ons.testing import TOLERANCE, VOCAB, WORDS, relative_error

SIZES: dict[str, Any] = {n: v for n, v in tiny.SIZES.items() if n != "sliding_window"}
SIZES |= {
    "vocab_size": VOCAB,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
"""What the makers add to a config for long contexts."""


def save(folder: Path, seed: int, rope: dict[str, Any], dialect: int, **changes: Any) -> Any:
    """A random model of transformers; its folder, by that version of it."""
    rope = {"rope_theta": 1e4, **rope}
    config = Qwen3MoeConfig(
        **{**SIZES, **changes}, rope_parameters=rope, attn_implementation="eager"
    )
    model = tiny.randomize(Qwen3MoeForCausalLM(config), seed)
    tiny.save_of_few_words(model, folder)
    if dialect == 4:
        content = json.loads((folder / "config.json").read_text())
        scaling = content.pop("rope_parameters")
        content["rope_theta"] = scaling.pop("rope_theta")
        content["rope_scaling"] = scaling if len(scaling) > 1 else None
        if "num_local_experts" in content:
            content["num_experts"] = content.pop("num_local_experts")
        (folder / "config.json").write_text(json.dumps(content))
    return model


@pytest.mark.parametrize("dialect", [4, 5])
@pytest.mark.parametrize("rope", [{"rope_type": "default"}, YARN], ids=["plain", "yarn"])
def test_exact(rope: dict[str, Any], dialect: int, tmp_path: Path, seed: int) -> None:
    model = save(tmp_path, seed, rope, dialect)
    tokens = np.random.default_rng(seed).choice(WORDS, 60).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    ours = np.array(load_model_kit(tmp_path).text_model(mx.array([tokens]))[0])
    assert relative_error(ours, expected) <= TOLERANCE


def test_without_scaling_it_is_mlx_lm_s(seed: int) -> None:
    fields = {
        **SIZES,
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
    }
    mx.random.seed(seed)
    theirs = plain.Model(plain.ModelArgs.from_dict(fields))
    ours = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(fields))
    ours.update(theirs.parameters())
    tokens = mx.array([[5, 9, 40, 33]])
    assert mx.array_equal(ours(tokens), theirs(tokens))
