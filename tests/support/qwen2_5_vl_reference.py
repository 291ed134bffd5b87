"""A tiny random Qwen2.5-VL of transformers: windows in one of three blocks' attention and not."""

from typing import ClassVar

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from support import published_qwen_templates as published
from support.qwen2_vl_reference import REFUSED, TEXT, Qwen2VLReference
from vision_add_ons.errors import BrokenConfig


class Qwen25VLReference(Qwen2VLReference):
    name = "qwen2_5_vl"
    refused = (
        *REFUSED,
        ("vision_config.out_hidden_size", 32, BrokenConfig),
        ("vision_config.window_size", 7, BrokenConfig),
        ("vision_config.window_size", 10**12, BrokenConfig),
        ("vision_config.intermediate_size", 0, BrokenConfig),
    )
    templates: ClassVar = {"with tools": published.QWEN_TOOLS}
    config_class = Qwen2_5_VLConfig
    model_class = Qwen2_5_VLForConditionalGeneration
    vision: ClassVar = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "window_size": 24,  # 3 x 3 rows, which leaves smaller ones at both edges
        "fullatt_block_indexes": [1],
    }
