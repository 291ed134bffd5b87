"""Families with a SigLIP tower, or one like it, that cut large pictures into tiles."""

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.lfm2_vl.add_on import TOKENS as LFM2_TOKENS
from vision_add_ons.minicpmv.prompt import TOKENS as MINICPM_TOKENS
from vision_add_ons.mlx_vlm_modules import import_mlx_vlm

from .family import IMAGE, SIGLIP, SIGLIP_BASE, SO400M, TEXT, Family, Fields, Made, square
from .qwen import HYBRID


def _internvl(vision: Fields, photo: Image.Image) -> Made:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    made = GotOcr2ImageProcessorPil(**square(vision))
    return {
        "pixel_values": made([photo], crop_to_patches=True, return_tensors="np")["pixel_values"]
    }


def _idefics3(vision: Fields, photo: Image.Image) -> Made:
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    return dict(Idefics3ImageProcessorPil(**_tiles(vision))([photo], return_tensors="np"))


def _smolvlm(vision: Fields, photo: Image.Image) -> Made:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    return dict(SmolVLMImageProcessorPil(**_one_tile(vision))([photo], return_tensors="np"))


def _tiles(vision: Fields) -> Fields:
    side = vision["image_size"]
    return {"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}}


def _one_tile(vision: Fields) -> Fields:
    side = {"longest_edge": vision["image_size"]}
    return {"size": side, "max_image_size": side}


def _lfm2(vision: Fields, photo: Image.Image) -> Made:
    module = import_mlx_vlm("lfm2_vl.processing_lfm2_vl")
    made = module.Lfm2VlNumpyImageProcessor(**_lfm2_settings(vision))([photo])
    return {
        name: mx.array(made[name]) for name in module.Lfm2VlNumpyImageProcessor.model_input_names
    }


def _lfm2_settings(vision: Fields) -> Fields:
    return {"encoder_patch_size": vision["patch_size"], "resample": 2}


def _minicpm(vision: Fields, photo: Image.Image) -> Made:
    module = import_mlx_vlm("minicpmv4_6.processing_minicpmv4_6")
    made = module.MiniCPMVImageProcessor(**_minicpm_settings(vision))([[photo]])
    return {name: made[name] for name in ("pixel_values", "tgt_sizes")}


def _bounds(tokens: np.ndarray) -> Made:
    """Where the picture's rows go, which mlx-vlm's processor finds in the prompt."""
    where = np.flatnonzero(tokens == IMAGE)
    return {"image_bound": [np.array([[where[0], where[-1] + 1]])]}


def _minicpm_settings(vision: Fields) -> Fields:
    return {"patch_size": vision["patch_size"], "use_image_id": False}


EPS = "the last norm's epsilon is MLX's default; of 27 patches a side, 10 lie one off"
TANH = "MLX's precise GELU is the tanh one, and taken for the erf one"
PLACES_OFF = f"{TANH}; of 70 positions a side, some are one off"
LLAMA: Fields = {**TEXT, "model_type": "llama"}
TILE_NAMES = ("<image>", "<fake_token_around_image>", "<global-img>")
TILE_NAMES += tuple(f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5))
TILE_TOKENS = {text: IMAGE - i for i, text in enumerate(TILE_NAMES)}
PLACES = [f"<|img_row_{i}_col_{j}|>" for i in range(1, 11) for j in range(1, 11)]
MINICPM: Fields = {
    "text_config": {**HYBRID, "model_type": "qwen3_5_text"},
    "vision_config": {**SIGLIP, "model_type": "minicpmv4_6_vision", "image_size": 448},
    "insert_layer_id": 0,
    "image_token_id": IMAGE,
    "video_token_id": IMAGE + 1,
}
MINICPM["vision_config"] |= {"patch_size": 14}
MINICPM_NUMBERS = {text: IMAGE + i for i, text in enumerate(MINICPM_TOKENS.values())}

FAMILIES = {
    "internvl": Family(
        config={
            "text_config": {
                **TEXT,
                "model_type": "qwen3",
                "max_position_embeddings": 512,
                "rope_theta": 1e4,
                "tie_word_embeddings": True,
            },
            "vision_config": {**SIGLIP, "model_type": "internvl_vision", "attention_bias": True},
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
        settings=square,
        off=TANH,
        tokens={"<img>": IMAGE + 3, "<IMG_CONTEXT>": IMAGE, "</img>": IMAGE + 4},
    ),
    "idefics3": Family(
        config={
            "text_config": LLAMA,
            "vision_config": {**SIGLIP, "model_type": "idefics3_vision"},
            "image_token_id": IMAGE,
            "scale_factor": 4,
        },
        real=SIGLIP_BASE,
        process=_idefics3,
        settings=_tiles,
        tokens=TILE_TOKENS,
        off=EPS,
    ),
    "smolvlm": Family(
        config={
            "text_config": LLAMA,
            "vision_config": {**SIGLIP, "model_type": "smolvlm_vision", "image_size": 72},
            "image_token_id": IMAGE,
            "scale_factor": 3,
        },
        real={**SO400M, "image_size": 384},
        process=_smolvlm,
        settings=_one_tile,
        tokens=TILE_TOKENS,
        off=EPS,
    ),
    "lfm2_vl": Family(
        config={
            "text_config": {
                **TEXT,
                "model_type": "lfm2",
                "num_hidden_layers": 2,
                "layer_types": ["conv", "full_attention"],
            },
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "patch_size": 16,
                "num_patches": 256,
                "vision_use_head": False,
            },
            "image_token_id": IMAGE,
            "projector_hidden_size": 96,
        },
        real={n: SIGLIP_BASE[n] for n in SIGLIP_BASE if n != "image_size"},
        process=_lfm2,
        settings=_lfm2_settings,
        tokens={text: IMAGE - i for i, text in enumerate([*LFM2_TOKENS.values(), *PLACES])},
    ),
    "minicpmv4_6": Family(
        config=MINICPM,
        real={**SO400M, "image_size": 980},
        process=_minicpm,
        settings=_minicpm_settings,
        beside=_bounds,
        tokens=MINICPM_NUMBERS,
        off=PLACES_OFF,
    ),
    "minicpmv4_7": Family(
        config={
            **MINICPM,
            "vision_config": {**MINICPM["vision_config"], "model_type": "minicpmv4_7_vision"},
            "image_start_id": MINICPM_NUMBERS["<image>"],
            "image_end_id": MINICPM_NUMBERS["</image>"],
            "slice_start_id": MINICPM_NUMBERS["<slice>"],
            "slice_end_id": MINICPM_NUMBERS["</slice>"],
            "newline_id": 0,
        },
        real={**SO400M, "image_size": 980},
        process=_minicpm,
        settings=_minicpm_settings,
        beside=_bounds,
        tokens=MINICPM_NUMBERS,
        off=PLACES_OFF,
    ),
}
