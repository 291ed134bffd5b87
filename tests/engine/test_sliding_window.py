"""Rotating caches: layers with a sliding window cannot be trimmed once the window has moved."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support import tiny
from support.as_if_cold import asked
from support.seeds import SWEEP
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from engine import (
    Engine,
    GenerationOptions,
    OptionError,
    UnsupportedCheckpoint,
    load,
)
from model_kit import load_model_kit
from vision_add_ons.testing import VOCAB, WORDS

SIZES: dict[str, Any] = {
    **{n: v for n, v in tiny.SIZES.items() if n != "sliding_window"},
    "vocab_size": VOCAB,
    "num_hidden_layers": 6,
    "sliding_window": 16,
    "query_pre_attn_scalar": 16,
    "tie_word_embeddings": True,
}


def gemma(seed: int, **changes: Any) -> Any:
    config = Gemma3TextConfig(**{**SIZES, **changes}, attn_implementation="eager")
    return tiny.randomize(Gemma3ForCausalLM(config), seed)


@pytest.fixture
def folder(tmp_path: Path, seed: int) -> Path:
    pattern = (["sliding_attention"] * 2 + ["full_attention"]) * 2
    return tiny.save_of_few_words(gemma(seed, layer_types=pattern), tmp_path / "gemma")


@pytest.fixture
def engines(folder: Path) -> Iterator[tuple[Engine, Engine]]:
    with load(folder) as warm, load(folder, cache_bytes=0) as cold:
        yield warm, cold


@pytest.mark.parametrize("period", [2, 3])
def test_layer_types_of_transformers_5(period: int, tmp_path: Path, seed: int) -> None:
    """The list becomes the period that mlx-lm reads; beyond the window it decides the logits."""
    kinds = [*["sliding_attention"] * (period - 1), "full_attention"] * (6 // period)
    model = gemma(seed, layer_types=kinds)
    kit = load_model_kit(tiny.save_of_few_words(model, tmp_path / "gemma"))
    assert kit.text_model is not None
    tokens = random.Random(seed).choices(range(VOCAB), k=50)
    ours = np.array(kit.text_model(mx.array([tokens]), cache=kit.make_cache())[0, -1])
    theirs = tiny.last_logits(model, tokens)
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= 2e-5


def test_what_mlx_lm_leaves_out_is_refused(folder: Path) -> None:
    saved = (folder / "config.json").read_text()
    for changes in (
        {"final_logit_softcapping": 3.0},
        {"use_bidirectional_attention": True},
        {"hidden_activation": "silu"},
        {"layer_types": ["full_attention", *["sliding_attention"] * 5]},
    ):
        tiny.edit_config(folder, **changes)
        with pytest.raises(UnsupportedCheckpoint, match=next(iter(changes))):
            load(folder)
        (folder / "config.json").write_text(saved)


def test_random_requests_are_answered_as_if_cold(engines: tuple[Engine, Engine], seed: int) -> None:
    """Whoever asks, whatever was cached, trimmed, shared or cancelled before."""
    warm, cold = engines
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=60)
    reused = 0
    for _ in range(24 if SWEEP else 12):
        prompt = words[: rng.randrange(1, 60)] + rng.choices(words, k=rng.randrange(3))
        end = asked(warm, cold, prompt, rng)
        reused += end.cached_tokens if end is not None else 0
    assert reused > 100


def test_their_kv_cache_cannot_be_quantized(engines: tuple[Engine, Engine]) -> None:
    with pytest.raises(OptionError, match="cannot be quantized"):
        engines[0].generate("x", options=GenerationOptions(kv_bits=8))
