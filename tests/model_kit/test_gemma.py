"""Gemma 1 and 2 as text models against transformers, and against plain mlx-lm where it is exact."""

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import does_model_support_input_embeddings
from mlx_lm.utils import load_model as load_plain
from support import tiny
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

from model_kit import ModelKit, load_model_kit
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.testing import VOCAB

TOLERANCE = 2e-5
WINDOW = 24
LENGTH = 60
SIZES: dict[str, Any] = {n: v for n, v in tiny.SIZES.items() if n != "sliding_window"}
SIZES["vocab_size"] = VOCAB
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gemma": (GemmaConfig, GemmaForCausalLM, {}),
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
}


def gemma(seed: int, family: str, **changes: Any) -> Any:
    config_class, model_class, own = FAMILIES[family]
    config = config_class(**{**SIZES, **own, **changes}, attn_implementation="eager")
    model = tiny.randomize(model_class(config), seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data -= 1  # Gemma's norms multiply by 1 + weight
    return model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokens(seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=LENGTH)


def reference(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def in_chunks(kit: ModelKit, tokens: list[int], step: int) -> np.ndarray:
    """Logits [len(tokens), vocab_size], `step` tokens at a time through one cache."""
    assert kit.text_model is not None
    cache = kit.make_cache()
    chunks = [tokens[i : i + step] for i in range(0, len(tokens), step)]
    rows = [kit.text_model(mx.array([chunk]), cache=cache)[0] for chunk in chunks]
    return np.array(mx.concatenate(rows))


def check(kit: ModelKit, model: Any, tokens: list[int], what: str) -> None:
    theirs = reference(model, tokens)
    for step in (LENGTH, 7, 1):
        ours = in_chunks(kit, tokens, step)
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        print(f"{what}, {step} tokens at a time: relative error {error:.1e}")
        assert error <= TOLERANCE


@pytest.mark.parametrize("dialect", [4, 5])
def test_text_is_exact(
    family: str, dialect: int, tokens: list[int], tmp_path: Path, seed: int
) -> None:
    """Also beyond Gemma 2's sliding window, which then no longer limits the context."""
    theta = {"rope_type": "default", "rope_theta": 300.0}
    model = gemma(seed, family, rope_parameters=theta)
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
    if dialect == 4:
        tiny.edit_config(folder, ("rope_parameters", "layer_types"), rope_theta=300.0)
    kit = load_model_kit(folder)
    check(kit, model, tokens, f"{family} in dialect {dialect}")
    assert kit.max_context == SIZES["max_position_embeddings"]


@pytest.mark.parametrize("dialect", [4, 5])
def test_gemma3_text_is_exact(dialect: int, tokens: list[int], tmp_path: Path, seed: int) -> None:
    """Gemma 3 1B's kind, beyond its sliding window. Text alone goes through mlx-lm's class."""
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = Gemma3TextConfig(
        **SIZES,
        sliding_window=WINDOW,
        sliding_window_pattern=3,
        query_pre_attn_scalar=24,
        rope_parameters=rope,
        attn_implementation="eager",
    )
    model = tiny.randomize(Gemma3ForCausalLM(config), seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data -= 1
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
    if dialect == 4:
        tiny.edit_config(
            folder,
            ("rope_parameters", "layer_types"),
            rope_theta=1e6,
            rope_local_base_freq=1e4,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            sliding_window_pattern=3,
        )
    kit = load_model_kit(folder)
    assert kit.add_on is None
    check(kit, model, tokens, f"gemma3_text in dialect {dialect}")


def test_layer_types_decide_who_has_a_window(tokens: list[int], tmp_path: Path, seed: int) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    model = gemma(seed, "gemma2", layer_types=kinds)
    kit = load_model_kit(tiny.save_of_few_words(model, tmp_path / "tiny"))
    check(kit, model, tokens, "gemma2, full layer first")


def test_quantized(family: str, tokens: list[int], tmp_path: Path, seed: int) -> None:
    """The reference has the weights that quantization left."""
    model = gemma(seed, family)
    group, bits = 32, 8
    quantized: dict[str, Any] = {}
    for name, module in model.model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            continue
        parts = mx.quantize(mx.array(module.weight.detach().numpy()), group, bits)
        with torch.no_grad():
            module.weight.copy_(torch.tensor(np.array(mx.dequantize(*parts, group, bits))))
        for end, part in zip(("weight", "scales", "biases"), parts, strict=True):
            quantized[f"model.{name}.{end}"] = torch.from_numpy(np.array(part))
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
    tiny.edit_weights(folder, lambda tensors: tensors.update(quantized))
    tiny.edit_config(folder, quantization={"group_size": group, "bits": bits})
    check(load_model_kit(folder), model, tokens, f"{family}, {bits} bits")


def test_within_the_window_gemma2_is_plain_mlx_lm(
    tokens: list[int], tmp_path: Path, seed: int
) -> None:
    folder = tiny.save_of_few_words(gemma(seed, "gemma2"), tmp_path / "tiny")
    ours = load_model_kit(folder).text_model
    plain, _ = load_plain(folder)
    assert ours is not None
    for length in (1, WINDOW):
        prompt = mx.array([tokens[:length]])
        assert mx.array_equal(ours(prompt), plain(prompt))


def test_embeddings_take_the_place_of_tokens(
    family: str, tokens: list[int], tmp_path: Path, seed: int
) -> None:
    """Given as they enter the first layer, and left as they are."""
    model = load_model_kit(
        tiny.save_of_few_words(gemma(seed, family), tmp_path / "tiny")
    ).text_model
    assert model is not None
    assert does_model_support_input_embeddings(model)
    prompt = mx.array([tokens])
    embeddings = model.model.embed(prompt)
    before = mx.array(embeddings)
    nothing = mx.zeros_like(prompt)
    assert mx.array_equal(model(nothing, input_embeddings=embeddings), model(prompt))
    assert mx.array_equal(embeddings, before)


def test_the_first_gemmas_mean_tanh_by_gelu(tokens: list[int], tmp_path: Path, seed: int) -> None:
    model = gemma(seed, "gemma")
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
    tiny.edit_config(folder, hidden_act="gelu", hidden_activation=None)
    check(load_model_kit(folder), model, tokens, "gemma with hidden_act gelu")


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("gemma", "hidden_act", "gelu_fast"),
        ("gemma", "tie_word_embeddings", False),
        ("gemma", "use_bidirectional_attention", True),
        ("gemma2", "hidden_activation", "gelu"),
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma2", "final_logit_softcapping", None),
        ("gemma2", "tie_word_embeddings", False),
        ("gemma2", "use_bidirectional_attention", True),
    ],
    indirect=["family"],
)
def test_what_differs_is_refused(
    family: str, field: str, value: Any, tmp_path: Path, seed: int
) -> None:
    folder = tiny.save_of_few_words(gemma(seed, family), tmp_path / "tiny")
    tiny.edit_config(folder, **{field: value})
    with pytest.raises(UnsupportedCheckpoint, match=field):
        load_model_kit(folder)
