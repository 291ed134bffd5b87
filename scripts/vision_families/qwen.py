"""Qwen's families and GLM-4V: pictures of any shape, whose patches become rows in fours."""

import mlx.core as mx
from PIL import Image

from vision_add_ons.mlx_vlm_modules import import_mlx_vlm

from .family import IMAGE, TEXT, Family, Fields, Made


def _qwen(vision: Fields, photo: Image.Image) -> Made:
    module = import_mlx_vlm("qwen3_vl.processing_qwen3_vl")
    processor = module.Qwen3VLImageProcessor(**_qwen_settings(vision))
    made = processor([photo])
    return {name: mx.array(array) for name, array in made.items()}


def _qwen_settings(vision: Fields) -> Fields:
    cut = {"patch_size": vision["patch_size"], "min_pixels": 3136, "max_pixels": 1003520}
    return cut | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _glm_settings(vision: Fields) -> Fields:
    return {
        "patch_size": vision["patch_size"],
        "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    }


def _glm(vision: Fields, photo: Image.Image) -> Made:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    made = Glm4vImageProcessorPil(**_glm_settings(vision))([photo], return_tensors="np")
    return {name: mx.array(array) for name, array in made.items()}


MARKS: Fields = {
    "image_token_id": IMAGE,
    "video_token_id": IMAGE + 1,
    "vision_start_token_id": IMAGE + 2,
}
QWEN3: Fields = {
    "model_type": "qwen3_vl_text",
    "num_hidden_layers": 3,  # one for each of the tower's features
    "max_position_embeddings": 512,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2]},
}
EXPERTS: Fields = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
HYBRID: Fields = {
    **TEXT,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "full_attention_interval": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    },
}
ROPE: Fields = {"type": "mrope", "mrope_section": [2, 3, 3]}
VISION: Fields = {"depth": 2, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2}
SIZES: Fields = {**VISION, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 64}
SIZES3: Fields = {**SIZES, "patch_size": 16}
DEEP: Fields = {**SIZES3, "deepstack_visual_indexes": [0]}
REAL25: Fields = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16}
REAL3: Fields = {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16}
DEEP_REAL: Fields = {**REAL3, "deepstack_visual_indexes": [8, 16, 24]}

FAMILIES = {
    "qwen2_vl": Family(
        config={
            **TEXT,
            **MARKS,
            "rope_scaling": ROPE,
            "vision_config": {**VISION, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 4},
        },
        real={"embed_dim": 1280, "depth": 32, "num_heads": 16},
        process=_qwen,
        settings=_qwen_settings,
    ),
    "qwen2_5_vl": Family(
        config={
            **TEXT,
            **MARKS,
            "rope_scaling": ROPE,
            "vision_config": {**SIZES, "window_size": 112, "fullatt_block_indexes": [1]},
        },
        real={**REAL25, "fullatt_block_indexes": [7, 15, 23, 31]},
        process=_qwen,
        settings=_qwen_settings,
    ),
    "qwen3_vl": Family(
        config={**MARKS, "text_config": {**TEXT, **QWEN3}, "vision_config": DEEP},
        real=DEEP_REAL,
        process=_qwen,
        settings=_qwen_settings,
    ),
    "qwen3_vl_moe": Family(
        config={
            **MARKS,
            "text_config": {
                **TEXT,
                **QWEN3,
                **EXPERTS,
                "model_type": "qwen3_vl_moe_text",
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            },
            "vision_config": DEEP,
        },
        real=DEEP_REAL,
        process=_qwen,
        settings=_qwen_settings,
        off="each GELU is the other's",
    ),
    "qwen3_5": Family(
        config={
            **MARKS,
            "text_config": {**HYBRID, "model_type": "qwen3_5_text"},
            "vision_config": SIZES3,
        },
        real=REAL3,
        process=_qwen,
        settings=_qwen_settings,
    ),
    "qwen3_5_moe": Family(
        config={
            **MARKS,
            "text_config": {
                **HYBRID,
                **EXPERTS,
                "model_type": "qwen3_5_moe_text",
                "shared_expert_intermediate_size": 32,
            },
            "vision_config": SIZES3,
        },
        real=REAL3,
        process=_qwen,
        settings=_qwen_settings,
    ),
    "glm4v": Family(
        config={
            **MARKS,
            "video_start_token_id": IMAGE + 3,
            "text_config": {
                **TEXT,
                "model_type": "glm4v_text",
                "eos_token_id": [2],
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "max_position_embeddings": 4096,
                "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
            },
            "vision_config": {
                **VISION,
                "model_type": "glm4v",
                "hidden_size": 64,
                "intermediate_size": 96,
                "out_hidden_size": 64,
                "image_size": 336,
                "temporal_patch_size": 2,
                "in_channels": 3,
            },
        },
        real={
            "hidden_size": 1536,
            "intermediate_size": 13696,
            "out_hidden_size": 4096,
            "depth": 24,
            "num_heads": 12,
        },
        real_text={"hidden_size": 4096, "num_attention_heads": 256},
        process=_glm,
        settings=_glm_settings,
        off="positions are stretched by another cubic",
    ),
}
