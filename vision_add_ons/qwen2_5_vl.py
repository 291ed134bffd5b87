"""Qwen2.5-VL: Qwen2-VL with another tower, most of whose blocks look through windows.

Semantics: transformers' `Qwen2_5_VLForConditionalGeneration`. For pictures, positions and
preprocessing are Qwen2-VL's.
"""

from typing import Any

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.qwen2_vl import Qwen2VLAddOn
from vision_add_ons.qwen2_vl.config import check_tower


class Qwen25VLAddOn(Qwen2VLAddOn):
    """Qwen2.5-VL, for pictures; not for videos."""

    model_types = ("qwen2_5_vl",)

    @staticmethod
    def check_tower(whole: dict[str, Any]) -> None:
        check_tower(whole, width="hidden_size", out_width="out_hidden_size")
        vision = whole["vision_config"]
        check_fields(vision, "vision_config", hidden_act=("silu",))
        positive(vision, "vision_config", "intermediate_size", "window_size")
        rows = vision["window_size"] // (2 * vision["patch_size"])
        if not 1 <= rows <= 1000:
            raise BrokenConfig(
                f"vision_config.window_size {vision['window_size']} makes windows of {rows} rows"
            )
