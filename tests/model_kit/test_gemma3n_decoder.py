"""Gemma 3n's text half: as mlx-lm's own to the bit, and as transformers where that one is not."""

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3n
from support import tiny
from support.gemma3n_reference import DECODER
from support.seeds import seed_of
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from model_kit import ModelKit, load_model_kit
from vision_add_ons.testing import PAD, VOCAB, relative_error

UNLIKE = {"altup_coef_clip": 0.1}
"""Clipped by mlx-lm whatever it is, and in transformers in training alone."""


def made(folder: Path, **changes: Any) -> tuple[Any, ModelKit]:
    config = Gemma3nTextConfig(**{**DECODER, **changes}, attn_implementation="eager")
    model = tiny.randomize(Gemma3nForCausalLM(config), seed_of("gemma3n"))
    with torch.no_grad():
        model.model.embed_tokens.weight[PAD] = 0
    return model, load_model_kit(tiny.save_of_few_words(model, folder))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ModelKit]:
    return made(tmp_path_factory.mktemp("gemma3n") / "tiny", **UNLIKE)


@pytest.fixture
def tokens(seed: int) -> list[int]:
    return random.Random(seed).choices(range(1, VOCAB), k=60)


def in_chunks(model: Any, tokens: list[int], step: int) -> np.ndarray:
    caches = model.make_cache()
    starts = range(0, len(tokens), step)
    rows = [model(mx.array([tokens[i : i + step]]), cache=caches)[0] for i in starts]
    return np.array(mx.concatenate(rows))


def test_text_is_exact(pair: tuple[Any, ModelKit], tokens: list[int]) -> None:
    """Beyond the window, with an embedding of zeros, and with weights beyond the clip."""
    model, kit = pair
    tokens[7] = PAD
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    for step in (60, 7, 1):
        assert relative_error(in_chunks(kit.text_model, tokens, step), theirs) <= 2e-5
    assert relative_error(np.array(kit.text_model(mx.array([tokens]))[0]), theirs) <= 2e-5
    assert kit.max_context == DECODER["max_position_embeddings"]


def test_all_else_is_plain_mlx_lm(pair: tuple[Any, ModelKit], tokens: list[int]) -> None:
    ours: Any = pair[1].text_model
    fields = {**pair[1].config.decoder, "altup_coef_clip": None}
    plain = gemma3n.Model(gemma3n.ModelArgs("gemma3n", fields))
    weights = [(f"model.language_{name}", w) for name, w in tree_flatten(ours.parameters())]
    plain.load_weights(weights, strict=False)  # that of keys that nobody looks at
    for step in (60, 7):
        assert np.array_equal(in_chunks(ours, tokens, step), in_chunks(plain, tokens, step))


@pytest.mark.parametrize("changes", [{"num_kv_shared_layers": 0}, {"altup_active_idx": 2}], ids=str)
def test_other_configs(changes: dict[str, Any], tokens: list[int], tmp_path: Path) -> None:
    model, kit = made(tmp_path / "tiny", **changes)
    with torch.no_grad():
        theirs = model(torch.tensor([tokens])).logits[0].numpy()
    assert relative_error(in_chunks(kit.text_model, tokens, 32), theirs) <= 2e-5
