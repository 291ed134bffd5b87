"""Families with towers, small and of published sizes, as mlx-vlm builds and runs them, on random
weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from PIL import Image
from tokenizers import Tokenizer, models

from vision_add_ons.mlx_vlm_modules import import_mlx_vlm

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "rms_norm_eps": 1e-6,
}
IMAGE = 500
"""The id of the image token, in every family."""


TOKENS = {"[IMG]": IMAGE, "[IMG_BREAK]": IMAGE + 1, "[IMG_END]": IMAGE + 2}
TOKENS |= {"<img>": IMAGE + 3, "<IMG_CONTEXT>": IMAGE, "</img>": IMAGE + 4}
TILE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>")
TILE_TOKENS += tuple(f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5))

Made = dict[str, Any]
"""What an image processor makes of a photograph."""


@dataclass(frozen=True)
class Family:
    """How to build one family, small and real, and how mlx-vlm runs it."""

    config: dict[str, Any]
    real: dict[str, Any]
    """Fields of vision_config that make the tower one of published size."""
    process: Callable[[dict[str, Any], Image.Image], Made]
    """mlx-vlm's own preprocessing, given vision_config."""
    settings: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {}
    """The same as preprocessor_config.json."""
    real_text: dict[str, Any] = field(default_factory=dict)
    """Fields of text_config that go with `real`."""


def _square(vision: dict[str, Any]) -> dict[str, Any]:
    side = {"height": vision["image_size"], "width": vision["image_size"]}
    return {"size": side, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _gemma3(vision: dict[str, Any], photo: Image.Image) -> Made:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return dict(Gemma3ImageProcessorPil(**_square(vision))([photo], return_tensors="np"))


def _paligemma(vision: dict[str, Any], photo: Image.Image) -> Made:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return dict(SiglipImageProcessorPil(**_square(vision))([photo], return_tensors="np"))


def _internvl(vision: dict[str, Any], photo: Image.Image) -> Made:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    made = GotOcr2ImageProcessorPil(**_square(vision))
    return {
        "pixel_values": made([photo], crop_to_patches=True, return_tensors="np")["pixel_values"]
    }


def _pixtral(merged: int) -> Callable[[dict[str, Any], Image.Image], Made]:
    def process(vision: dict[str, Any], photo: Image.Image) -> Made:
        module = import_mlx_vlm("pixtral.image_processing_pixtral")
        cell = vision["patch_size"] * merged
        made = module.PixtralImageProcessor(size={"longest_edge": 1024}, patch_size=cell)([[photo]])
        return {name: made[name] for name in ("pixel_values", "image_sizes")}

    return process


def _idefics3(vision: dict[str, Any], photo: Image.Image) -> Made:
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    return dict(Idefics3ImageProcessorPil(**_tiles(vision))([photo], return_tensors="np"))


def _tiles(vision: dict[str, Any]) -> dict[str, Any]:
    side = vision["image_size"]
    return {"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}}


def _qwen(vision: dict[str, Any], photo: Image.Image) -> Made:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    made = Qwen2VLImageProcessorPil(**_qwen_settings(vision))([photo], return_tensors="np")
    return {name: mx.array(array) for name, array in made.items()}


def _qwen_settings(vision: dict[str, Any]) -> dict[str, Any]:
    cut = {"patch_size": vision["patch_size"], "min_pixels": 3136, "max_pixels": 1003520}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return cut | half if vision["patch_size"] == 16 else cut


def _glm_settings(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": vision["patch_size"],
        "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    }


def _glm(vision: dict[str, Any], photo: Image.Image) -> Made:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    made = Glm4vImageProcessorPil(**_glm_settings(vision))([photo], return_tensors="np")
    return {name: mx.array(array) for name, array in made.items()}


SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 64,
    "head_dim": 16,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 1024,
    "patch_size": 16,
    "hidden_act": "silu",
}
PIXTRAL_REAL = {
    "hidden_size": 1024,
    "head_dim": 64,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
MISTRAL = {**TEXT, "model_type": "mistral"}
QWEN = {"image_token_id": IMAGE, "video_token_id": IMAGE + 1, "vision_start_token_id": IMAGE + 2}
QWEN3 = {
    "model_type": "qwen3",
    "max_position_embeddings": 512,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
}
QWEN_ROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}
AXES = {"rope_type": "default", "mrope_section": [4, 2, 2]}
QWEN_VISION = {"depth": 2, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2}
QWEN_SIZES = {**QWEN_VISION, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 64}
QWEN25_REAL = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16}
QWEN3_REAL = {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "num_heads": 16}

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
        settings=_square,
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
        process=_paligemma,
        settings=_square,
    ),
    "internvl": Family(
        config={
            "text_config": {**TEXT, **QWEN3},
            "vision_config": {
                "model_type": "internvl_vision",
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 8,
                "attention_bias": True,
            },
            "image_token_id": IMAGE,
        },
        real={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
        },
        process=_internvl,
        settings=_square,
    ),
    "pixtral": Family(
        config={"text_config": MISTRAL, "vision_config": PIXTRAL, "image_token_index": IMAGE},
        real=PIXTRAL_REAL,
        process=_pixtral(1),
    ),
    "mistral3": Family(
        config={
            "text_config": {**MISTRAL, "rope_theta": 1e6},
            "vision_config": {**PIXTRAL, "patch_size": 14},
            "image_token_index": IMAGE,
            "spatial_merge_size": 2,
        },
        real=PIXTRAL_REAL,
        process=_pixtral(2),
    ),
    "idefics3": Family(
        config={
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**SIGLIP, "model_type": "idefics3_vision"},
            "image_token_id": IMAGE,
            "scale_factor": 4,
        },
        real={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 256,
            "patch_size": 16,
        },
        process=_idefics3,
        settings=_tiles,
    ),
    "qwen2_vl": Family(
        config={
            **TEXT,
            **QWEN,
            "rope_scaling": QWEN_ROPE,
            "vision_config": {**QWEN_VISION, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 4},
        },
        real={"embed_dim": 1280, "depth": 32, "num_heads": 16},
        process=_qwen,
        settings=_qwen_settings,
    ),
    "qwen2_5_vl": Family(
        config={
            **TEXT,
            **QWEN,
            "rope_scaling": QWEN_ROPE,
            "vision_config": {**QWEN_SIZES, "window_size": 112, "fullatt_block_indexes": [1]},
        },
        real={**QWEN25_REAL, "fullatt_block_indexes": [7, 15, 23, 31]},
        process=_qwen,
        settings=_qwen_settings,
    ),
    "qwen3_vl": Family(
        config={
            **QWEN,
            "text_config": {**TEXT, **QWEN3, "model_type": "qwen3_vl_text", "rope_scaling": AXES},
            "vision_config": {**QWEN_SIZES, "patch_size": 16, "deepstack_visual_indexes": [0]},
        },
        real={**QWEN3_REAL, "deepstack_visual_indexes": [8, 16, 24]},
        process=_qwen,
        settings=_qwen_settings,
    ),
    "glm4v": Family(
        config={
            **QWEN,
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
                **QWEN_VISION,
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
    ),
}


def mlx_vlm_model(name: str, config: dict[str, Any]) -> Any:
    module = import_mlx_vlm(name)
    model_config = module.ModelConfig.from_dict(config)
    for part in ("text", "vision"):
        made = getattr(model_config, f"{part}_config")
        if isinstance(made, dict):
            part_class = getattr(module, f"{part.title()}Config")
            setattr(model_config, f"{part}_config", part_class.from_dict(made))
    model = module.Model(model_config)
    model.eval()
    mx.eval(model.parameters())
    return model


def write_checkpoint(
    folder: Path, config: dict[str, Any], settings: dict[str, Any], model: Any
) -> None:
    """A checkpoint of the towers of mlx-vlm's model."""
    weights = dict(tree_flatten(model.parameters()))
    towers = {n: w for n, w in weights.items() if not n.startswith("language_model.")}
    mx.save_safetensors(str(folder / "model.safetensors"), towers)
    side, patch = (config["vision_config"].get(name, 1) for name in ("image_size", "patch_size"))
    for file, content in (
        ("config.json", config),
        ("preprocessor_config.json", settings),
        ("processor_config.json", {"image_seq_length": (side // patch // 2) ** 2}),  # InternVL's
    ):
        (folder / file).write_text(json.dumps(content))
    _tokenizer(config["model_type"]).save(str(folder / "tokenizer.json"))


def _tokenizer(model_type: str) -> Tokenizer:
    """One that knows a family's tokens for pictures, and nothing else."""
    tiles = {text: IMAGE - i for i, text in enumerate(TILE_TOKENS)}
    tokens = tiles if model_type == "idefics3" else TOKENS
    words = Tokenizer(models.WordLevel({"<unk>": 0, **tokens}, unk_token="<unk>"))
    words.add_special_tokens(list(tokens))
    return words
