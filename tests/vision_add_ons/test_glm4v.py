"""GLM-4V where it differs from other families: sizes of pictures, learned positions of any grid,
and configs as published.

What every family holds is checked in tests/parity.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.glm4v_reference import ROPE, VIDEO_START, Glm4vReference
from support.qwen2_vl_reference import IMAGE, VIDEO
from torch.nn.functional import grid_sample
from transformers.models.glm4v.image_processing_pil_glm4v import (
    Glm4vImageProcessorPil,
    smart_resize,
)

from engine import load
from model_kit.config import read_config
from model_kit.decoder_modules import decoder_module
from model_kit.kit import inspect_checkpoint
from vision_add_ons.configs import resolve_config
from vision_add_ons.errors import ImageError, PromptError
from vision_add_ons.glm4v import Glm4vAddOn
from vision_add_ons.glm4v.preprocessing import Glm4vPatches
from vision_add_ons.glm4v.tower import shares
from vision_add_ons.testing import BOS, WORDS, relative_error, written
from vision_add_ons.testing.kit import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Glm4vReference(1), tmp_path_factory.mktemp("glm4v"))


@pytest.mark.parametrize("images", [[], [Image.new("RGB", (9, 9))]])
@pytest.mark.parametrize("token", [VIDEO, VIDEO_START])
def test_videos_are_refused(folder: Path, token: int, images: list[Image.Image]) -> None:
    with load(folder) as engine, pytest.raises(PromptError, match="videos are not supported"):
        engine.generate([BOS, token, *[IMAGE] * len(images), 9], images=images)


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.glm4v.add_on:Glm4vAddOn"
    assert any("512 to 4096 pixels in all: 8 to 64 rows" in line for line in report.lines())


# --- pictures ---------------------------------------------------------------------------------

side = st.one_of(st.integers(1, 300), st.integers(1, 20_000))


@given(
    st.tuples(side, side),
    st.integers(1, 100_000),
    st.integers(1, 3_000_000),
    st.sampled_from((1, 2, 3)),
)
def test_sizes_are_those_of_the_reference(
    size: tuple[int, int], low: int, high: int, frames: int
) -> None:
    patches = Glm4vPatches(14, 2, frames, low, high, None)  # type: ignore[arg-type]
    width, height = size
    try:
        expected = smart_resize(frames, height, width, frames, 28, low, high)
    except ValueError:
        with pytest.raises(ImageError, match=f"{width}x{height}"):
            patches.resized(size)
    else:
        assert patches.resized(size) == expected[::-1]


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"size": {"shortest_edge": 12544, "longest_edge": 9633792}},
        {"size": {"shortest_edge": 784, "longest_edge": 7840}, "min_pixels": 1, "max_pixels": 9},
        {"max_pixels": 7840},
    ],
)
def test_limits(saved: dict[str, Any], tmp_path: Path) -> None:
    """By `size` alone: what Qwen2-VL's processor heeds besides means nothing to this one."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    vision = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    patches = Glm4vPatches.read(tmp_path, vision)
    theirs = Glm4vImageProcessorPil(**saved).size
    limits = patches.min_pixels, patches.max_pixels
    assert limits == (theirs["shortest_edge"], theirs["longest_edge"])


# --- the tower --------------------------------------------------------------------------------

some = st.integers(1, 60)


@given(some, some, some)
def test_learned_positions_are_those_of_the_reference(rows: int, columns: int, side: int) -> None:
    learned = np.random.default_rng(side).standard_normal((side, side)).astype(np.float32)
    ours = shares(rows, side) @ learned @ shares(columns, side).T
    lines, places = (
        (torch.arange(count, dtype=torch.float32) + 0.5) / count * 2 - 1
        for count in (rows, columns)
    )
    where = torch.stack(torch.meshgrid(lines, places, indexing="ij")[::-1], dim=-1)
    options = {"mode": "bicubic", "padding_mode": "border", "align_corners": False}
    theirs = grid_sample(torch.tensor(learned)[None, None], where[None], **options)
    assert np.abs(ours - theirs[0, 0].numpy()).max() < 1e-4


def test_biases_of_attention(tmp_path: Path, seed: int) -> None:
    """As a config may ask for; published ones have none."""
    vision = {**Glm4vReference.vision, "attention_bias": True}
    reference = type("Other", (Glm4vReference,), {"vision": vision})(seed)
    answers_alike(reference, tmp_path)


# --- the decoder ------------------------------------------------------------------------------


def answers_alike(reference: Glm4vReference, folder: Path) -> None:
    prompt: list[Any] = [BOS, *WORDS[:5], Image.new("RGB", (40, 30), "teal"), *WORDS[9:12]]
    with load(written(reference, folder)) as engine:
        tokens, images = reference.expanded(prompt)
        answer, ours, _ = ask(engine, prompt, reference)
        theirs = reference.logits(tokens, images, answer[:-1])[len(tokens) - 1 :]
        assert relative_error(ours, theirs - theirs.mean(-1, keepdims=True)) <= 2e-5


@pytest.mark.parametrize("dropped", [["partial_rotary_factor"], []])
def test_heads_that_are_turned_whole(dropped: list[str], tmp_path: Path, seed: int) -> None:
    """Also by a config that does not say it: only a GLM-4 by itself would then turn half."""
    rope = {**ROPE, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    for name in dropped:
        del rope[name]
    answers_alike(Glm4vReference(seed, rope_parameters=rope), tmp_path)


def test_quantized_kv_cache_keeps_positions(tmp_path: Path, seed: int) -> None:
    """8 bits are near, positions in one line are far; in several chunks, and in a second turn."""
    rope = {**ROPE, "mrope_section": [4, 2, 2]}
    sizes = {"hidden_size": 128, "head_dim": 32}
    vision = {**Glm4vReference.vision, "out_hidden_size": 128}
    reference = type("Wide", (Glm4vReference,), {"vision": vision})(
        seed, rope_parameters=rope, **sizes
    )
    written(reference, tmp_path)
    prompt: list[Any] = [BOS, *WORDS[:9], Image.new("RGB", (40, 30), "teal"), *WORDS[20:30]]
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0, "prefill_step_size": 11}
    with load(tmp_path) as engine:
        for _ in range(2):
            tokens, images = reference.expanded(prompt)
            answer, ours, _ = ask(engine, prompt, reference, **options)
            theirs = reference.logits(tokens, images, answer[:-1])[len(tokens) - 1 :]
            assert relative_error(ours, theirs - theirs.mean(-1, keepdims=True)) < 0.05
            prompt += [*answer, Image.new("RGB", (30, 44), "maroon"), *WORDS[30:35]]


# --- configs as published ---------------------------------------------------------------------

TEXT: dict[str, Any] = {
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338, 151348],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 65536,
    "model_type": "glm4v_text",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 151552,
}
VISION: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "depth": 24,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1536,
    "image_size": 336,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "num_heads": 12,
    "out_hidden_size": 4096,
    "patch_size": 14,
    "rms_norm_eps": 1e-05,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
WHOLE: dict[str, Any] = {
    "architectures": ["Glm4vForConditionalGeneration"],
    "image_end_token_id": 151340,
    "image_start_token_id": 151339,
    "image_token_id": 151363,
    "model_type": "glm4v",
    "video_end_token_id": 151342,
    "video_start_token_id": 151341,
    "video_token_id": 151364,
}
OLDER = {
    **WHOLE,
    "text_config": {
        **TEXT,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"},
        "rope_theta": 10000.0,
    },
    "vision_config": {**VISION, "model_type": "glm4v"},
}
NEWER = {
    **WHOLE,
    "text_config": {
        **TEXT,
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "mrope_section": [8, 12, 12],
            "partial_rotary_factor": 0.5,
            "rope_theta": 500000.0,
            "rope_type": "default",
        },
    },
    "vision_config": {**VISION, "model_type": "glm4v_vision"},
}


EXPERTS = {
    **OLDER,
    "architectures": ["Glm4vMoeForConditionalGeneration"],
    "model_type": "glm4v_moe",
    "text_config": {
        **OLDER["text_config"],
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "intermediate_size": 10944,
        "model_type": "glm4v_moe_text",
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 96,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 46,
        "num_key_value_heads": 8,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    "vision_config": {**VISION, "intermediate_size": 10944, "model_type": "glm4v_moe"},
}


@pytest.mark.parametrize("config", [OLDER, NEWER, EXPERTS], ids=["4.1V", "4.6V-Flash", "4.5V"])
def test_published_configs(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_config(tmp_path)
    text: dict[str, Any] = config["text_config"]
    assert read.add_on is Glm4vAddOn
    assert read.decoder_type == ("glm4_moe" if config is EXPERTS else "glm4")
    assert read.max_context == text["max_position_embeddings"]
    assert read.eos_token_ids == set(TEXT["eos_token_id"])
    assert read.assumed == []
    args = decoder_module(read.decoder_type).ModelArgs.from_dict(read.decoder)
    assert args.rope_theta == (500000.0 if config is NEWER else 10000.0)
    assert args.partial_rotary_factor == 0.5
    assert (args.head_dim, args.attention_bias) == (128, True)
    Glm4vAddOn.check_tower(resolve_config(config))
