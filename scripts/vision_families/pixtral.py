"""Pixtral and what is built as it is: pictures of any shape, a row of tokens behind another."""

from collections.abc import Callable

from PIL import Image

from vision_add_ons.mlx_vlm_modules import import_mlx_vlm

from .family import IMAGE, TEXT, Family, Fields, Made


def _pixtral(merged: int) -> Callable[[Fields, Image.Image], Made]:
    def process(vision: Fields, photo: Image.Image) -> Made:
        module = import_mlx_vlm("pixtral.image_processing_pixtral")
        cell = vision["patch_size"] * merged
        made = module.PixtralImageProcessor(size={"longest_edge": 1024}, patch_size=cell)([[photo]])
        return {name: made[name] for name in ("pixel_values", "image_sizes")}

    return process


PIXTRAL: Fields = {
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
REAL: Fields = {
    "hidden_size": 1024,
    "head_dim": 64,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
TOKENS = {"[IMG]": IMAGE, "[IMG_BREAK]": IMAGE + 1, "[IMG_END]": IMAGE + 2}
MISTRAL: Fields = {**TEXT, "model_type": "mistral"}

FAMILIES = {
    "pixtral": Family(
        config={"text_config": MISTRAL, "vision_config": PIXTRAL, "image_token_index": IMAGE},
        real=REAL,
        process=_pixtral(1),
        tokens=TOKENS,
    ),
    "mistral3": Family(
        config={
            "text_config": {**MISTRAL, "rope_theta": 1e6},
            "vision_config": {**PIXTRAL, "patch_size": 14},
            "image_token_index": IMAGE,
            "spatial_merge_size": 2,
        },
        real=REAL,
        process=_pixtral(2),
        tokens=TOKENS,
    ),
}
