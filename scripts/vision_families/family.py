"""What is told of a family: its sizes, and how mlx-vlm makes pixels of a photograph."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

Fields = dict[str, Any]
Made = dict[str, Any]
"""What an image processor makes of a photograph."""

IMAGE = 500
"""The id of the image token, in every family."""

TEXT: Fields = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "rms_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class Family:
    """How to build one family, small and real, and how mlx-vlm runs it."""

    config: Fields
    real: Fields
    """Fields of vision_config that make the tower one of published size."""
    process: Callable[[Fields, Image.Image], Made]
    """mlx-vlm's own preprocessing, given vision_config."""
    settings: Callable[[Fields], Fields] = lambda _: {}
    """The same as preprocessor_config.json."""
    real_text: Fields = field(default_factory=dict)
    """Fields of text_config that go with `real`."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Those for pictures, which are all that its tokenizer knows."""
    beside: Callable[[np.ndarray], Made] = lambda _: {}
    """What mlx-vlm is told beside the pixels, given the prompt's tokens."""
    tiny: bool = True
    """Whether mlx-vlm has a small one, too."""
    off: str = ""
    """Why mlx-vlm's embeddings are others than ours; empty where they are the same."""


def with_blocks(vision: Fields, blocks: int) -> Fields:
    """vision_config of a tower with so many blocks, or as many as it has."""
    depth = "depth" if "depth" in vision else "num_hidden_layers"
    if vision.get(depth, 0) <= blocks:
        return vision
    told: Fields = {depth: blocks}
    if "fullatt_block_indexes" in vision:
        told["fullatt_block_indexes"] = [blocks - 1]
    if "deepstack_visual_indexes" in vision:
        features = min(len(vision["deepstack_visual_indexes"]), blocks)
        told["deepstack_visual_indexes"] = list(range(features))
    return {**vision, **told}


def square(vision: Fields) -> Fields:
    """The settings of a processor that makes squares of pictures, as large as the tower takes."""
    side = {"height": vision["image_size"], "width": vision["image_size"]}
    return {"size": side, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


SIGLIP: Fields = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
SO400M: Fields = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
SIGLIP_BASE: Fields = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 256,
    "patch_size": 16,
}
