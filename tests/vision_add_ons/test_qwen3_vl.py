"""Qwen3-VL where it differs from other families: features of deeper layers, learned positions of
any grid, and configs as published.

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
from support.qwen2_vl_reference import IMAGE, VIDEO
from support.qwen3_vl_reference import ROPE, Qwen3VLReference
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from engine import load
from engine.memory.room import Needs, Shape
from model_kit.config import read_config
from model_kit.decoder_modules import decoder_module
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.configs import resolve_config
from vision_add_ons.errors import PromptError
from vision_add_ons.qwen3_5 import Qwen35AddOn
from vision_add_ons.qwen3_vl import Qwen3VLAddOn
from vision_add_ons.qwen3_vl.tower import neighbours, places
from vision_add_ons.testing import BOS, WORDS, relative_error, written
from vision_add_ons.testing.kit import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Qwen3VLReference(1), tmp_path_factory.mktemp("qwen3_vl"))


@pytest.mark.parametrize("images", [[], [Image.new("RGB", (9, 9))]])
def test_videos_are_refused(folder: Path, images: list[Image.Image]) -> None:
    with load(folder) as engine, pytest.raises(PromptError, match="videos are not supported"):
        engine.generate([BOS, *[IMAGE] * len(images), VIDEO, 9], images=images)


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.qwen3_vl.add_on:Qwen3VLAddOn"
    assert any("512 to 4096 pixels in all: 8 to 64 rows" in line for line in report.lines())


# --- the tower --------------------------------------------------------------------------------

even = st.integers(1, 40).map(lambda n: 2 * n)


@given(st.tuples(even, even), st.integers(1, 50))
def test_learned_positions_are_those_of_the_reference(grid: tuple[int, int], side: int) -> None:
    whole = torch.tensor([[1, *grid]])
    where = places(grid)
    assert np.array_equal(where, get_vision_position_ids(whole, 2).numpy())
    index, share = neighbours(where, grid, side)
    expected, weights = get_vision_interpolation_indices_and_weights(
        whole, side, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    # One tap beyond the last may be another where its share is nothing.
    assert np.array_equal(np.where(share > 0, index, 0), np.where(weights > 0, expected, 0))
    assert np.abs(share - weights.numpy()).max() < 1e-6


# --- the decoder ------------------------------------------------------------------------------


def test_quantized_kv_cache_keeps_positions_and_features(tmp_path: Path, seed: int) -> None:
    """8 bits are near, a layer without features is far; in several chunks, and in a second turn."""
    rope = {**ROPE, "mrope_section": [6, 5, 5]}
    reference = Qwen3VLReference(seed, head_dim=32, rope_parameters=rope)
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


def test_no_features_of_deeper_layers(tmp_path: Path, seed: int) -> None:
    """Rows alone, as wide as the decoder; and a tower whose last layer gives features."""
    reference = Qwen3VLReference(seed)
    folder = written(reference, tmp_path)
    tower = Qwen3VLAddOn(folder, json.loads((folder / "config.json").read_text())).tower
    assert tower.deep == (0, 2)
    for deep in ([], [3]):
        vision = {**Qwen3VLReference.vision, "deepstack_visual_indexes": deep}
        other = type("Other", (Qwen3VLReference,), {"vision": vision})(seed)
        place = written(other, tmp_path / str(len(deep)))
        prompt: list[Any] = [BOS, *WORDS[:5], Image.new("RGB", (40, 30), "teal"), *WORDS[9:12]]
        with load(place) as engine:
            tokens, images = other.expanded(prompt)
            answer, ours, _ = ask(engine, prompt, other)
            theirs = other.logits(tokens, images, answer[:-1])[len(tokens) - 1 :]
            assert relative_error(ours, theirs - theirs.mean(-1, keepdims=True)) <= 2e-5


def test_features_are_counted_where_memory_is(folder: Path) -> None:
    kit = load_model_kit(folder)
    assert kit.add_on is not None
    assert kit.add_on.features == 2
    needs, shape = Needs(kit), Shape(100, sees=True)
    wide = needs.reading(shape, 32)
    kit.add_on.features = 0
    assert wide - needs.reading(shape, 32) == 2 * 100 * 64 * 4


# --- configs as published ---------------------------------------------------------------------

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "dtype": "bfloat16",
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "max_position_embeddings": 262144,
    "model_type": "qwen3_vl_text",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "mrope_interleaved": True,
        "mrope_section": [24, 20, 20],
        "rope_type": "default",
    },
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 151936,
}
VISION: dict[str, Any] = {
    "deepstack_visual_indexes": [5, 11, 17],
    "depth": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1024,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "model_type": "qwen3_vl",
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "out_hidden_size": 2560,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
WHOLE: dict[str, Any] = {
    "image_token_id": 151655,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
DENSE = {
    **WHOLE,
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "text_config": TEXT,
    "tie_word_embeddings": True,
    "vision_config": VISION,
}
EXPERTS = {
    **WHOLE,
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "text_config": {
        **{name: value for name, value in TEXT.items() if name != "tie_word_embeddings"},
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        **VISION,
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "qwen3_vl_moe",
        "out_hidden_size": 2048,
    },
}

HYBRID_TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17408,
    "layer_types": ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(64)],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "use_cache": True,
    "vocab_size": 248320,
}
HYBRID_WHOLE = {
    **WHOLE,
    "image_token_id": 248056,
    "tie_word_embeddings": False,
    "video_token_id": 248057,
    "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}
HYBRID_VISION = {**EXPERTS["vision_config"], "deepstack_visual_indexes": []}
HYBRID = {
    **HYBRID_WHOLE,
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": HYBRID_TEXT,
    "vision_config": {**HYBRID_VISION, "model_type": "qwen3_5", "out_hidden_size": 5120},
}
HYBRID_EXPERTS = {
    **HYBRID_WHOLE,
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "text_config": {
        **{name: v for name, v in HYBRID_TEXT.items() if name != "intermediate_size"},
        "hidden_size": 2048,
        "layer_types": HYBRID_TEXT["layer_types"][:40],
        "linear_num_value_heads": 32,
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 512,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 512,
    },
    "vision_config": {**HYBRID_VISION, "model_type": "qwen3_5_moe"},
}


@pytest.mark.parametrize("config", [HYBRID, HYBRID_EXPERTS], ids=["27B", "35B-A3B"])
def test_published_hybrid_configs(config: dict[str, Any], tmp_path: Path) -> None:
    """Qwen3.5's."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_config(tmp_path)
    text: dict[str, Any] = config["text_config"]
    assert read.add_on is Qwen35AddOn
    assert read.decoder_type == text["model_type"]
    assert read.max_context == 262144
    assert read.eos_token_ids == {248044}
    args = decoder_module(read.decoder_type).ModelArgs.from_dict(read.decoder)
    assert args.rope_theta == 1e7
    assert args.partial_rotary_factor == 0.25
    assert args.full_attention_interval == 4
    assert args.tie_word_embeddings is False
    for name in ("head_dim", "linear_num_value_heads", "moe_intermediate_size", "num_experts"):
        assert getattr(args, name) == text.get(name, 0)
    Qwen35AddOn.check_tower(resolve_config(config))


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=["4B", "30B-A3B"])
def test_published_configs(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_config(tmp_path)
    text: dict[str, Any] = config["text_config"]
    assert read.add_on is Qwen3VLAddOn
    assert read.decoder_type == ("qwen3" if config is DENSE else "qwen3_moe")
    assert read.max_context == 262144
    assert read.eos_token_ids == {151645}
    assert read.assumed == []
    args = decoder_module(read.decoder_type).ModelArgs.from_dict(read.decoder)
    assert args.tie_word_embeddings is config["tie_word_embeddings"]
    assert args.rope_theta == 5e6
    for name in ("head_dim", "hidden_size", "moe_intermediate_size", "num_experts"):
        assert getattr(args, name, None) == text.get(name)
    Qwen3VLAddOn.check_tower(resolve_config(config))


def test_the_router_s_scores_add_up_whatever_a_config_says(tmp_path: Path) -> None:
    text = {**EXPERTS["text_config"], "norm_topk_prob": False}
    (tmp_path / "config.json").write_text(json.dumps({**EXPERTS, "text_config": text}))
    assert read_config(tmp_path).decoder["norm_topk_prob"] is True
