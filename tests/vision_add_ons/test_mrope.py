"""Positions on three axes: any prompt's, and the turning by them, against transformers."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from mlx_lm.models.rope_utils import initialize_rope
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel
from transformers.models.glm4v import modeling_glm4v as glm4v
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VLRotaryEmbedding,
    apply_rotary_pos_emb,
)
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl

from engine.memory.prompt_cache import kv_length
from vision_add_ons.mrope import (
    Grid,
    MRope,
    Positions,
    PositionView,
    PromptPositions,
    in_runs,
    interleaved,
)

HEAD, SECTIONS = 16, [2, 3, 3]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 2 * HEAD,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
VISION = {"depth": 1, "num_heads": 1, "spatial_merge_size": 2}


def reference(config_class: Any, model_class: Any) -> Any:
    with torch.device("meta"):
        return model_class(config_class(text_config=TEXT, vision_config=VISION))


REFERENCES = [
    reference(Qwen2VLConfig, Qwen2VLModel),
    reference(Qwen2_5_VLConfig, Qwen2_5_VLModel),
]

sides = st.integers(1, 7)
Prompt = tuple[int, list[Grid]]


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """The length of a prompt and its pictures, between which there is text: so the reference
    tells them apart."""
    index = draw(st.integers(0, 9))
    grids = []
    for rows, columns, text in draw(st.lists(st.tuples(sides, sides, st.integers(1, 9)))):
        grids.append((index, rows, columns))
        index += rows * columns + text
    return index + 1, grids


chunks = st.tuples(st.integers(0, 200), st.integers(1, 60))


def ids_of(prompt: Prompt, until: int) -> np.ndarray:
    """The positions of the prompt and of what comes after it, token by token."""
    positions = PromptPositions(*prompt)
    after = [[i + positions.delta] * 3 for i in range(prompt[0], until)]
    return np.concatenate([positions.ids, np.array(after).reshape(-1, 3).T], axis=1)


@given(prompts(), st.sampled_from(REFERENCES))
def test_positions_are_those_of_the_reference(prompt: Prompt, model: Any) -> None:
    length, grids = prompt
    kinds = torch.zeros((1, length), dtype=torch.int)
    for start, rows, columns in grids:
        kinds[0, start : start + rows * columns] = 1
    sizes = torch.tensor([[1, 2 * rows, 2 * columns] for _, rows, columns in grids])
    ids, delta = model.get_rope_index(torch.zeros_like(kinds).long(), kinds, sizes)
    ours = PromptPositions(length, grids)
    assert np.array_equal(ours.ids, ids[:, 0].numpy())
    assert ours.delta == int(delta)


@given(prompts(), chunks)
def test_axes_of_any_chunk(prompt: Prompt, chunk: tuple[int, int]) -> None:
    """Also of one that begins or ends behind the prompt."""
    start, count = chunk
    expected = ids_of(prompt, start + count)[:, start : start + count]
    assert np.array_equal(PromptPositions(*prompt).axes(start, count), expected)


@given(st.integers(0, 1000), prompts())
def test_positions_are_the_number_they_are(offset: int, prompt: Prompt) -> None:
    there = Positions(offset, PromptPositions(*prompt))
    assert there == offset
    assert hash(there) == hash(offset)
    assert type(there + 1) is int


# --- turning ----------------------------------------------------------------------------------


def ropes(scaling: dict[str, Any] | None, theta: float = 1e4) -> tuple[MRope, Any]:
    """Ours around mlx-lm's, and the reference's."""
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": {**parameters, "mrope_section": SECTIONS}}
    ).text_config
    plain = initialize_rope(HEAD, theta, False, scaling_config=scaling)
    return MRope(plain, in_runs(SECTIONS)), Qwen2VLRotaryEmbedding(config)


@settings(max_examples=50)
@given(prompts(), chunks, st.sampled_from([None, YARN]), st.integers(0, 2**31))
def test_turning_is_the_reference_s(
    prompt: Prompt, chunk: tuple[int, int], scaling: dict[str, Any] | None, seed: int
) -> None:
    start, count = chunk
    ours, theirs = ropes(scaling)
    x = np.random.default_rng(seed).normal(size=(1, 2, count, HEAD)).astype(np.float32)
    turned = np.array(ours(mx.array(x), offset=Positions(start, PromptPositions(*prompt))))
    ids = torch.tensor(ids_of(prompt, start + count)[:, None, start : start + count])
    cos, sin = theirs(torch.from_numpy(x), ids)
    expected, _ = apply_rotary_pos_emb(torch.from_numpy(x), torch.from_numpy(x), cos, sin)
    error = np.linalg.norm(turned - expected.numpy()) / np.linalg.norm(expected.numpy())
    assert error <= 2e-5


def forms() -> dict[str, tuple[MRope, Any, Any]]:
    """Ours, the reference's tables and its turning: of each way to lay out the axes."""
    parameters = {"rope_type": "default", "rope_theta": 1e4}
    three = {**parameters, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    part = {**parameters, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    text = {**TEXT, "head_dim": HEAD}
    config = qwen3_vl.Qwen3VLTextConfig(**text, rope_parameters=three)
    hybrid = {**three, **part, "mrope_section": [2, 1, 1]}
    small = qwen3_5.Qwen3_5TextConfig(**text, rope_parameters=hybrid)
    glm = glm4v.Glm4vTextConfig(**TEXT, rope_parameters=part)
    return {
        "interleaved": (
            MRope(nn.RoPE(HEAD), interleaved([4, 2, 2])),
            qwen3_vl.Qwen3VLTextRotaryEmbedding(config),
            qwen3_vl.apply_rotary_pos_emb,
        ),
        "interleaved, of half a head": (
            MRope(nn.RoPE(HEAD // 2), interleaved([2, 1, 1])),
            qwen3_5.Qwen3_5TextRotaryEmbedding(small),
            qwen3_5.apply_rotary_pos_emb,
        ),
        "neighbours, of half a head": (
            MRope(nn.RoPE(HEAD // 2, traditional=True), in_runs([2, 1, 1]), traditional=True),
            glm4v.Glm4vTextRotaryEmbedding(glm),
            glm4v.apply_rotary_pos_emb,
        ),
    }


FORMS = forms()


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20)
@given(prompts(), chunks, st.integers(0, 2**31))
def test_other_ways_to_turn(form: str, prompt: Prompt, chunk: tuple[int, int], seed: int) -> None:
    start, count = chunk
    ours, theirs, turn = FORMS[form]
    x = np.random.default_rng(seed).normal(size=(1, 2, count, HEAD)).astype(np.float32)
    turned = np.array(ours(mx.array(x), offset=Positions(start, PromptPositions(*prompt))))
    ids = torch.tensor(ids_of(prompt, start + count)[:, None, start : start + count])
    cos, sin = theirs(torch.from_numpy(x), ids)
    expected, _ = turn(torch.from_numpy(x), torch.from_numpy(x), cos, sin)
    error = np.linalg.norm(turned - expected.numpy()) / np.linalg.norm(expected.numpy())
    assert error <= 2e-5


def test_interleaved_axes() -> None:
    """Sections that differ: what the shortest leaves is of time."""
    assert interleaved([4, 3, 1]) == [0, 1, 2, 0, 1, 0, 0, 1]
    assert interleaved([1, 3, 2]) == [0, 1, 2, 0, 1, 2]  # where a last place would lie beyond


class CountingRope(nn.RoPE):
    calls = 0

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        self.calls += 1
        return super().__call__(x, offset)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_text_is_turned_by_the_wrapped_rope(dtype: mx.Dtype) -> None:
    """Bit for bit: without positions, and before, between and behind pictures with them."""
    plain = nn.RoPE(HEAD)
    rope = MRope(plain, in_runs(SECTIONS))
    prompt = PromptPositions(60, [(10, 3, 5), (35, 4, 2)])
    x = mx.random.normal((1, 2, 8, HEAD)).astype(dtype)
    cases = [(7, 7), (mx.array(7), 7), (0, 0)]
    cases += [
        (Positions(i, prompt), p) for i, p in ((2, 2), (26, 16), (45, 31), (60, 46), (99, 85))
    ]
    for offset, position in cases:
        turned, expected = rope(x, offset=offset), plain(x, offset=position)
        assert turned.dtype == dtype
        assert mx.array_equal(turned, expected)
    assert mx.array_equal(rope(x), plain(x))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_pictures_are_turned_once_a_chunk_in_float32(dtype: mx.Dtype) -> None:
    layers = [MRope(CountingRope(HEAD), in_runs(SECTIONS)) for _ in range(4)]
    prompt = PromptPositions(60, [(10, 3, 5)])
    x = mx.random.normal((1, 2, 20, HEAD)).astype(dtype)
    exact = layers[0](x.astype(mx.float32), offset=Positions(5, prompt))
    for layer in layers:
        for _ in "qk":
            turned = layer(x, offset=Positions(5, prompt))
            assert turned.dtype == dtype
            assert mx.array_equal(turned, exact.astype(dtype))
    # One call for each axis made the tables for all.
    assert [layer.rope.calls for layer in layers] == [3, 0, 0, 0]
    other = PromptPositions(60, [(10, 5, 3)])
    moved = layers[0](x, offset=Positions(5, other))
    assert not mx.array_equal(moved, exact.astype(dtype))


# --- views --------------------------------------------------------------------------------------


def test_a_view_keeps_its_positions_when_its_cache_is_quantized() -> None:
    prompt = PromptPositions(40, [(3, 4, 4)])
    view = PositionView(KVCache(), prompt)
    keys = mx.random.normal((1, 2, 9, 64))
    view.update_and_fetch(keys, keys)
    quantized = view.to_quantized(group_size=32, bits=8)
    assert isinstance(quantized, PositionView)
    assert isinstance(quantized.cache, QuantizedKVCache)
    for each in (view, quantized):
        assert each.offset == kv_length([each]) == 9
        assert each.offset.prompt is prompt
    view.trim(4)
    assert (view.offset, quantized.offset) == (5, 9)
