"""Gemma 4's towers with choices other than the usual, sizes of pictures, configs, and refusals.

What every family holds is checked in tests/parity.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache
from support.gemma4_reference import (
    AUDIO,
    FULL,
    SLIDING,
    VIDEO,
    Gemma4MoeReference,
    Gemma4Reference,
    Gemma4UnifiedReference,
)
from support.tiny import edit_config
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    get_aspect_ratio_preserving_size,
)

from engine import GenerationOptions, load
from model_kit.config import read_config
from model_kit.gemma4 import ModelArgs
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.cache_views import BidirectionalView
from vision_add_ons.errors import PromptError
from vision_add_ons.gemma4 import Gemma4AddOn, Gemma4UnifiedAddOn
from vision_add_ons.gemma4.preprocessing import Squares
from vision_add_ons.pixels import Pixels
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import TOLERANCE, Photo, relative_error, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Gemma4Reference(1), tmp_path_factory.mktemp("gemma4"))


def add_on_of(folder: Path, kind: type[Gemma4AddOn] = Gemma4AddOn) -> Gemma4AddOn:
    return kind(folder, json.loads((folder / "config.json").read_text()))


def test_registry_knows_them() -> None:
    assert find_add_on("gemma4") is Gemma4AddOn
    assert find_add_on("gemma4_unified") is Gemma4UnifiedAddOn


@pytest.mark.parametrize(
    "vision",
    [
        {"pooling_kernel_size": 3, "position_embedding_size": 210},
        {"use_clipped_linears": False, "standardize": True},
        {"rope_parameters": {"rope_type": "axial", "rope_theta": 9.0}},
        {"rms_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_rows_with(vision: dict[str, Any], tmp_path: Path, seed: int) -> None:
    reference = Gemma4Reference(seed, vision=vision)
    if pool := vision.get("pooling_kernel_size"):
        reference.processor.pooling_kernel_size = pool
    photo = Photo(33, 47, seed)
    rows = np.array(add_on_of(written(reference, tmp_path)).encode_image(photo))
    error = relative_error(rows, reference.rows(photo.image))
    print(f"{vision}: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize("most", [70, 280, 1120])
def test_grids_are_those_of_the_reference(most: int, seed: int) -> None:
    squares = Squares(16, 3, most, Pixels(3, 1.0, (0, 0, 0), (1, 1, 1)))  # type: ignore[arg-type]
    sizes = np.random.default_rng(seed).integers(1, 3000, (300, 2)).tolist()
    for width, height in [*sizes, (1, 3000), (3000, 1), (1, 1), (71, 1), (4096, 48)]:
        theirs = get_aspect_ratio_preserving_size(height, width, 16, 9 * most, 3)
        assert squares.grid((width, height)) == tuple(edge // 48 for edge in theirs)


def test_load_report_states_the_limits(folder: Path) -> None:
    report = "\n".join(inspect_checkpoint(folder).lines())
    assert "a row for each 4 x 4 pixels, up to 70 rows, which small ones fill" in report


@pytest.mark.parametrize(("token", "told"), [(VIDEO, "videos"), (AUDIO, "sounds")])
def test_places_for_others_are_refused(folder: Path, token: int, told: str) -> None:
    with pytest.raises(PromptError, match=f"{told} are not supported"):
        add_on_of(folder).expand_prompt([1, 9, token, 9], [])


def test_the_text_half_alone(folder: Path) -> None:
    with load(folder, decoder_only=True) as alone, load(folder) as whole:
        prompt = [1, *range(10, 40)]
        short = GenerationOptions(max_tokens=8)
        told = [e.generate(prompt, options=short).result().tokens for e in (alone, whole)]
    assert told[0] == told[1]


def test_rows_see_each_other_where_the_config_says_so(copy: Path) -> None:
    photo = Photo(30, 30, 1)
    caches = [RotatingKVCache(24), KVCache()]
    eyes = add_on_of(copy)
    prompt = eyes.expand_prompt([1, eyes.placeholder_id, 9], [photo])
    assert prompt.bidirectional == ((2, prompt.spans[0].length),)
    views = eyes.cache_views(caches, prompt)
    assert isinstance(views[0], BidirectionalView)
    assert views[1] is caches[1]
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit_config(copy, text_config={**text, "use_bidirectional_attention": None})
    eyes = add_on_of(copy)
    prompt = eyes.expand_prompt([1, eyes.placeholder_id, 9], [photo])
    assert not prompt.bidirectional
    assert eyes.cache_views(caches, prompt) == caches


def test_in_the_unified_form_they_do_so_everywhere(tmp_path: Path) -> None:
    folder = written(Gemma4UnifiedReference(1), tmp_path)
    eyes = add_on_of(folder, Gemma4UnifiedAddOn)
    prompt = eyes.expand_prompt([1, eyes.placeholder_id, 9], [Photo(30, 30, 1)])
    first, last = prompt.bidirectional[0]
    assert last - first > 24
    for view in eyes.cache_views([RotatingKVCache(24), KVCache()], prompt):
        mask = view.make_mask(len(prompt.tokens), return_array=True, window_size=24)
        assert mask[first, last - 1]
        assert mask[last - 1, first]
        assert not mask[first - 1, first]


def test_bounds_without_use_are_ignored(tmp_path: Path) -> None:
    """As transformers ignores them."""
    reference = Gemma4Reference(1)
    reference.model.config.vision_config.use_clipped_linears = False
    add_on = add_on_of(written(reference, tmp_path))
    assert not hasattr(add_on.tower.encoder.layers[0].mlp.up_proj, "input_min")


# --- as published ---------------------------------------------------------------------------------

ROPES = {
    FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
}
TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "enable_moe_block": False,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "hidden_size_per_layer_input": 8,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "max_position_embeddings": 131072,
    "model_type": "gemma4_text",
    "moe_intermediate_size": None,
    "num_attention_heads": 8,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": ROPES,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_cache": True,
    "use_double_wide_mlp": True,
    "vocab_size": 512,
    "vocab_size_per_layer_input": 512,
}
OUTER = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "audio_token_id": 258881,
    "boa_token_id": 256000,
    "boi_token_id": 255999,
    "dtype": "bfloat16",
    "eoa_token_id": 258883,
    "eoa_token_index": 258883,
    "eoi_token_id": 258882,
    "eos_token_id": [1, 106],
    "image_token_id": 258880,
    "initializer_range": 0.02,
    "model_type": "gemma4",
    "tie_word_embeddings": True,
    "transformers_version": "5.5.0.dev0",
    "video_token_id": 258884,
    "vision_soft_tokens_per_image": 280,
}
VISION = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "default_output_length": 280,
    "global_head_dim": 64,
    "head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 131072,
    "model_type": "gemma4_vision",
    "num_attention_heads": 12,
    "num_hidden_layers": 1,
    "num_key_value_heads": 12,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 10240,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    "standardize": False,
    "use_clipped_linears": True,
}
AUDIO_CONFIG = {"hidden_size": 1024, "model_type": "gemma4_audio", "num_hidden_layers": 12}
E2B = {**OUTER, "audio_config": AUDIO_CONFIG, "text_config": TEXT, "vision_config": VISION}
LARGE_TEXT = {
    **TEXT,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "num_global_key_value_heads": 2,
    "num_key_value_heads": 4,
    "num_kv_shared_layers": 0,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
    "use_double_wide_mlp": False,
}
EXPERTS = {
    "enable_moe_block": True,
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "top_k_experts": 2,
}
WIDE = {"head_dim": 72, "global_head_dim": 72, "hidden_size": 1152, "num_attention_heads": 16}
WIDE |= {"num_key_value_heads": 16, "standardize": True, "use_clipped_linears": False}
LARGE = {"audio_config": None, "vision_config": {**VISION, **WIDE}}
PUBLISHED = {
    "E2B": E2B,
    "26B": {**E2B, **LARGE, "text_config": {**LARGE_TEXT, **EXPERTS}},
    "31B": {**E2B, **LARGE, "text_config": LARGE_TEXT},
    "12B": {
        **E2B,
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "audio_config": {"audio_embed_dim": 640, "model_type": "gemma4_unified_audio"},
        "model_type": "gemma4_unified",
        "text_config": {**LARGE_TEXT, "model_type": "gemma4_unified_text"},
        "vision_config": {
            "mm_embed_dim": 3840,
            "mm_posemb_size": 1120,
            "model_patch_size": 48,
            "model_type": "gemma4_unified_vision",
            "num_soft_tokens": 280,
            "output_proj_dims": 3840,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "rms_norm_eps": 1e-06,
        },
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name: str, tmp_path: Path) -> None:
    """Their fields; sizes are made small."""
    given = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(given))
    config = read_config(tmp_path)
    assert config.add_on is (Gemma4UnifiedAddOn if name == "12B" else Gemma4AddOn)
    assert config.eos_token_ids == {1, 106}
    args = ModelArgs.from_dict(config.decoder)
    text: Any = given["text_config"]
    assert args.layer_types == text["layer_types"]
    assert (args.head_dim, args.global_head_dim) == (256, 512)
    assert args.rope_parameters == ROPES
    if name != "E2B":
        assert (args.num_key_value_heads, args.num_global_key_value_heads) == (4, 2)
    for field in ("hidden_size_per_layer_input", "num_kv_shared_layers", "enable_moe_block"):
        assert getattr(args, field) == text[field]
    assert args.final_logit_softcapping == 30.0


def test_a_checkpoint_as_published(tmp_path: Path, seed: int) -> None:
    """With experts as transformers multiplies by them."""
    folder = tmp_path / "moe"
    folder.mkdir()
    written(Gemma4MoeReference(seed), folder, "as published")
    kit = load_model_kit(folder)
    assert kit.text_model is not None
    assert kit.text_model.layers[0].experts.switch_glu.up_proj.weight.shape == (4, 32, 64)
