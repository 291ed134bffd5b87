"""Gemma 4 as a text model against transformers, its caches, and configs that are refused."""

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import load_model as load_plain
from support import tiny
from support.as_if_cold import asked
from support.gemma4_reference import (
    ALIKE,
    EXPERTS,
    FULL,
    PER_LAYER,
    SHARING,
    SLIDING,
    TEXT,
    made_random,
)
from transformers import (
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Gemma4UnifiedForCausalLM,
    Gemma4UnifiedTextConfig,
)

from engine import GenerationOptions, OptionError, Request, load
from model_kit import load_model_kit
from model_kit.gemma4 import ModelArgs
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import BOS, TOLERANCE, WORDS, relative_error

SMALL: dict[str, Any] = {**PER_LAYER, **SHARING}
LARGE: dict[str, Any] = {"hidden_size_per_layer_input": 0, **ALIKE}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "small": (Gemma4TextConfig, Gemma4ForCausalLM, SMALL),
    "large": (Gemma4TextConfig, Gemma4ForCausalLM, LARGE),
    "experts": (Gemma4TextConfig, Gemma4ForCausalLM, {**LARGE, **EXPERTS}),
    "unified": (Gemma4UnifiedTextConfig, Gemma4UnifiedForCausalLM, ALIKE),
}


def gemma(kind: str, seed: int, **changes: Any) -> Any:
    config_class, model_class, own = KINDS[kind]
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    config = config_class(**{**TEXT, **own, **changes}, **eager)
    return made_random(model_class(config), seed)


def drawn(seed: int, count: int) -> list[int]:
    return [BOS, *random.Random(seed).choices(WORDS, k=count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_beyond_the_window(kind: str, tmp_path: Path, seed: int) -> None:
    """In chunks; where float32 is not enough, no further from float64 than the reference's."""
    model = gemma(kind, seed)
    kit = load_model_kit(tiny.save_of_few_words(model, tmp_path / kind))
    assert kit.text_model is not None
    assert kit.quantizable_kv_width is None
    tokens, caches = drawn(seed, 60), kit.make_cache()
    assert len(caches) == len(TEXT["layer_types"]) - KINDS[kind][2].get("num_kv_shared_layers", 0)
    kit.text_model(mx.array([tokens[:23]]), cache=caches)
    ours = np.array(kit.text_model(mx.array([tokens[23:]]), cache=caches)[0, -1])
    with torch.no_grad():
        single = model(torch.tensor([tokens])).logits[0, -1].numpy()
        double = model.double()(torch.tensor([tokens])).logits[0, -1].numpy()
    assert relative_error(ours, double) <= max(TOLERANCE, 1.5 * relative_error(single, double))


def test_text_is_mlx_lm_s_to_the_bit(tmp_path: Path, seed: int) -> None:
    folder = tiny.save_of_few_words(gemma("small", seed), tmp_path / "small")
    # mlx-lm's reads what was published, and not what transformers 5 writes.
    tiny.edit_config(folder, global_head_dim=TEXT["global_head_dim"])
    plain, _ = load_plain(folder)
    kit = load_model_kit(folder)
    assert kit.text_model is not None
    tokens = mx.array([drawn(seed, 40)])
    ours, theirs = (
        np.array(model(tokens, cache=model.make_cache())) for model in (kit.text_model, plain)
    )
    assert np.array_equal(ours, theirs)


def test_shared_and_rotating_caches(tmp_path: Path, seed: int) -> None:
    """Whoever asks, whatever was cached, as if nothing was."""
    folder = tiny.save_of_few_words(gemma("small", seed), tmp_path / "small")
    rng, words = random.Random(seed), drawn(seed, 60)
    with load(folder, parallel=3) as warm, load(folder, cache_bytes=0) as cold:
        reused = 0
        for _ in range(10):
            prompt = words[: rng.randrange(1, 60)] + rng.choices(words, k=rng.randrange(3))
            end = asked(warm, cold, prompt, rng)
            reused += end.cached_tokens if end is not None else 0
        assert reused > 20
        with pytest.raises(OptionError, match="cannot be quantized"):
            warm.generate(words, options=GenerationOptions(kv_bits=8))


def test_a_conversation_from_the_disk(tmp_path: Path, seed: int) -> None:
    """What some layers share, and what of the window is left, are in the file."""
    folder = tiny.save_of_few_words(gemma("small", seed), tmp_path / "small")
    options, cache = GenerationOptions(max_tokens=4), {"cache_dir": tmp_path / "kept"}
    with load(folder, **cache) as engine:
        first = drawn(seed, 40)
        end = engine.submit(Request(first, options=options, owner=engine)).result()
        question = [*first, *end.tokens, *drawn(seed + 1, 9)]
        before = engine.submit(Request(question, options=options, owner=engine)).result()
    with load(folder, **cache) as engine:
        again = engine.submit(Request(question, options=options)).result()
        assert again.tokens == before.tokens
        assert again.disk_tokens > len(first)


# --- configs --------------------------------------------------------------------------------------


def fields(**changes: Any) -> dict[str, Any]:
    return {**TEXT, **SMALL, "num_experts": 4, "top_k_experts": 2, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"attention_bias": True}, UnsupportedCheckpoint, "attention_bias"),
        ({"use_bidirectional_attention": "all"}, UnsupportedCheckpoint, "bidirectional"),
        ({"layer_types": [FULL] * 4 + [SLIDING]}, UnsupportedCheckpoint, "layer_types"),
        ({"layer_types": [FULL] * 4}, UnsupportedCheckpoint, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 4 + [FULL]}, UnsupportedCheckpoint, "layer_types"),
        ({"num_kv_shared_layers": 4}, BrokenConfig, "num_kv_shared_layers"),
        ({"num_kv_shared_layers": 5}, BrokenConfig, "num_kv_shared_layers"),
        ({"sliding_window": 0}, BrokenConfig, "sliding_window"),
        ({"vocab_size_per_layer_input": 80}, UnsupportedCheckpoint, "vocab_size_per_layer_input"),
        ({"enable_moe_block": True}, BrokenConfig, "moe_intermediate_size"),
        ({**EXPERTS, "top_k_experts": 5}, BrokenConfig, "top_k_experts"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, UnsupportedCheckpoint, "per_layer_config"),
        ({"per_layer_config": {"2": {"head_dim": 8}}}, UnsupportedCheckpoint, "per_layer_config"),
        (
            {"per_layer_config": {i: {"num_attention_heads": 2} for i in (0, 2, 4)}},
            UnsupportedCheckpoint,
            "per_layer_config",
        ),
        (
            {"per_layer_config": {i: {"num_key_value_heads": 1} for i in (0, 2, 4)}},
            UnsupportedCheckpoint,
            "attention_k_eq_v",
        ),
        ({"rope_parameters": {FULL: TEXT["rope_parameters"][FULL]}}, BrokenConfig, SLIDING),
        (
            {"rope_parameters": TEXT["rope_parameters"] | {FULL: {
                "rope_type": "proportional", "partial_rotary_factor": 0.22, "rope_theta": 1e5
            }}},
            UnsupportedCheckpoint,
            "partial_rotary_factor",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_refused(changes: dict[str, Any], error: type[Exception], told: str) -> None:
    ModelArgs.from_dict(fields())
    with pytest.raises(error, match=told):
        ModelArgs.from_dict(fields(**changes))


def test_what_single_layers_have_of_their_own() -> None:
    own = {"head_dim": 24, "num_key_value_heads": 1}
    told = {"0": own, "02": own, "4": own}
    args = ModelArgs.from_dict(fields(per_layer_config=told, attention_k_eq_v=True))
    assert (args.head_dim, args.global_head_dim) == (16, 24)
    assert (args.num_key_value_heads, args.num_global_key_value_heads) == (2, 1)


def test_ropes_of_other_types_are_refused(tmp_path: Path, seed: int) -> None:
    folder = tiny.save_of_few_words(gemma("large", seed), tmp_path / "large")
    ropes = json.loads((folder / "config.json").read_text())["rope_parameters"]
    ropes[SLIDING] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    tiny.edit_config(folder, rope_parameters=ropes)
    with pytest.raises(UnsupportedCheckpoint, match="rope_type 'linear'"):
        load_model_kit(folder)
