"""Tiny random decoders some of whose layers keep states and no keys: LFM2's and Qwen3.5's."""

from pathlib import Path
from typing import Any

import torch
from transformers import Lfm2Config, Lfm2ForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from support import tiny
from vision_add_ons.testing import VOCAB

SIZES: dict[str, Any] = {
    **{name: size for name, size in tiny.SIZES.items() if name != "sliding_window"},
    "vocab_size": VOCAB,
    "num_hidden_layers": 4,
}


def lfm2(seed: int, **changes: Any) -> Any:
    """Convolutions and attention in turns."""
    config = Lfm2Config(
        **{
            **SIZES,
            "layer_types": ["conv", "full_attention"] * 2,
            "conv_L_cache": 3,
            "conv_bias": False,
            "block_auto_adjust_ff_dim": False,
            "norm_eps": 1e-5,
            "block_dim": SIZES["hidden_size"],
            "block_ff_dim": SIZES["intermediate_size"],
            **changes,
        },
        attn_implementation="eager",
    )
    return tiny.randomize(Lfm2ForCausalLM(config), seed)


def qwen3_5(seed: int, **changes: Any) -> Any:
    """Linear attention and attention in turns; its norms count from 1, its decays fall."""
    config = Qwen3_5TextConfig(
        **{
            **SIZES,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
            **changes,
        },
        attn_implementation="eager",
    )
    model = tiny.randomize(Qwen3_5ForCausalLM(config), seed)
    norms = ("layernorm.weight", "model.norm.weight", "q_norm.weight", "k_norm.weight")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(norms):
                parameter.sub_(1)
            if name.endswith("A_log"):
                parameter.abs_()
    return model


HYBRIDS = {"lfm2": lfm2, "qwen3_5": qwen3_5}


def save(name: str, seed: int, folder: Path) -> Path:
    """A checkpoint of few words."""
    return tiny.save_of_few_words(HYBRIDS[name](seed), folder)
