"""Gemma's families and PaliGemma."""

import mlx.core as mx
from PIL import Image

from vision_add_ons.mlx_vlm_modules import import_mlx_vlm

from .family import IMAGE, SIGLIP, SO400M, TEXT, Family, Fields, Made, square


def _gemma3(vision: Fields, photo: Image.Image) -> Made:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return dict(Gemma3ImageProcessorPil(**square(vision))([photo], return_tensors="np"))


def _siglip(vision: Fields, photo: Image.Image) -> Made:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return dict(SiglipImageProcessorPil(**_as_saved(vision))([photo], return_tensors="np"))


def _as_saved(vision: Fields) -> Fields:
    """Gemma 3n's processor leaves pixels between 0 and 1."""
    saved = square(vision)
    return saved | {"do_normalize": False} if vision["model_type"] == "gemma3n_vision" else saved


def _gemma4(vision: Fields, photo: Image.Image) -> Made:
    module = import_mlx_vlm("gemma4.processing_gemma4")
    made, _ = module.Gemma4ImageProcessor(**_gemma4_settings(vision))([photo])
    return {"pixel_values": made["pixel_values"]}


def _unified(vision: Fields, photo: Image.Image) -> Made:
    module = import_mlx_vlm("gemma4_unified.processing_gemma4_unified")
    made, _ = module.Gemma4UnifiedImageProcessor(**_gemma4_settings(vision))([photo])
    places = mx.array(made["image_position_ids"])
    return {"pixel_values": made["pixel_values"], "image_position_ids": places}


def _gemma4_settings(vision: Fields) -> Fields:
    cut = {name: vision[name] for name in ("patch_size", "pooling_kernel_size")}
    return cut | {"max_soft_tokens": 70 if cut["patch_size"] < 16 else 280}


LAYERS = ["sliding_attention", "full_attention"]
OFFSETS = {"vision": 400, "audio": IMAGE + 4}
"""The first ids of Gemma 3n's other vocabularies."""
GEMMA4_TEXT: Fields = {
    **TEXT,
    "model_type": "gemma4_text",
    "num_hidden_layers": len(LAYERS),
    "layer_types": LAYERS,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "use_bidirectional_attention": "vision",
    "rope_parameters": {
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e5,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    },
}
GEMMA4_TOKENS = {"<|image|>": IMAGE, "<|image>": IMAGE + 1, "<image|>": IMAGE + 2}
GEMMA4_IDS: Fields = {
    "image_token_id": IMAGE,
    "boi_token_id": IMAGE + 1,
    "eoi_token_id": IMAGE + 2,
    "video_token_id": IMAGE + 3,
    "audio_token_id": IMAGE + 4,
    "audio_config": None,
}

FAMILIES = {
    "gemma3": Family(
        config={
            "text_config": {**TEXT, "model_type": "gemma3_text", "mm_tokens_per_image": 16},
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 16,
            "image_token_index": IMAGE,
            "hidden_size": 64,
        },
        real=SO400M,
        process=_gemma3,
        settings=square,
        off="words and rows are scaled later, and for the wrong width",
    ),
    "paligemma": Family(
        config={
            "text_config": {**TEXT, "model_type": "gemma"},
            "vision_config": {**SIGLIP, "projection_dim": 64},
            "image_token_index": IMAGE,
            "hidden_size": 64,
            "projection_dim": 64,
        },
        real=SO400M,
        process=_siglip,
        settings=square,
        off="rows are put in by their places in the prompt, and divided by the width's root",
    ),
    "gemma3n": Family(
        config={
            "text_config": {
                **TEXT,
                "model_type": "gemma3n_text",
                "num_hidden_layers": len(LAYERS),
                "intermediate_size": [96] * len(LAYERS),
                "layer_types": LAYERS,
                "activation_sparsity_pattern": [0.0] * len(LAYERS),
                "hidden_size_per_layer_input": 16,
                "vocab_size_per_layer_input": OFFSETS["vision"],
                "num_kv_shared_layers": 0,
            },
            "vision_config": {
                "model_type": "gemma3n_vision",
                "architecture": "mobilenetv5_300m_enc",
                "hidden_size": 2048,
                "image_size": 256,
                "vocab_offset": OFFSETS["vision"],
                "vocab_size": OFFSETS["audio"] - OFFSETS["vision"],
            },
            "audio_config": {
                "model_type": "gemma3n_audio",
                "hidden_size": 32,
                "conf_num_hidden_layers": 1,
                "vocab_offset": OFFSETS["audio"],
                "vocab_size": TEXT["vocab_size"] - OFFSETS["audio"],
            },
            "image_token_id": IMAGE,
            "audio_token_id": OFFSETS["audio"],
        },
        real={},
        tiny=False,
        process=_siglip,
        settings=_as_saved,
        off="words are not scaled; another GELU, other epsilons",
    ),
    "gemma4": Family(
        config={
            **GEMMA4_IDS,
            "text_config": GEMMA4_TEXT,
            "vision_config": {
                "model_type": "gemma4_vision",
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 16,
                "patch_size": 4,
                "pooling_kernel_size": 3,
                "position_embedding_size": 256,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
                "standardize": False,
                "use_clipped_linears": True,
            },
        },
        real={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 16,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "head_dim": 64,
            "patch_size": 16,
            "position_embedding_size": 10240,
        },
        process=_gemma4,
        settings=_gemma4_settings,
        tokens=GEMMA4_TOKENS,
    ),
    "gemma4_unified": Family(
        config={
            **GEMMA4_IDS,
            "text_config": {**GEMMA4_TEXT, "model_type": "gemma4_unified_text"},
            "vision_config": {
                "model_type": "gemma4_unified_vision",
                "patch_size": 4,
                "pooling_kernel_size": 3,
                "model_patch_size": 12,
                "mm_embed_dim": 64,
                "mm_posemb_size": 280,
                "output_proj_dims": 64,
                "rms_norm_eps": 1e-6,
            },
        },
        real={
            "patch_size": 16,
            "model_patch_size": 48,
            "mm_embed_dim": 3840,
            "mm_posemb_size": 1120,
            "output_proj_dims": 3840,
        },
        process=_unified,
        settings=_gemma4_settings,
        real_text={"hidden_size": 3840},
        off="resampled by Pillow, where the family's processor does as torchvision",
        tokens=GEMMA4_TOKENS,
    ),
}
