"""Qwen3.5: Qwen3-VL's tower without features of deeper layers, before a decoder most of whose
layers keep a state in place of keys.

Semantics: transformers' `Qwen3_5ForConditionalGeneration` and
`Qwen3_5MoeForConditionalGeneration`. For pictures, preprocessing and the grid of positions are
Qwen2-VL's; the first channels of a head alone are turned by them.
"""

from typing import Any, ClassVar

import mlx.nn as nn

from vision_add_ons.configs import check_fields
from vision_add_ons.mrope import MRope
from vision_add_ons.qwen2_vl.config import decoder_config
from vision_add_ons.qwen3_vl import Qwen3VLAddOn


class Qwen35AddOn(Qwen3VLAddOn):
    """Qwen3.5 and what is built as it is, for pictures; not for videos."""

    model_types = ("qwen3_5", "qwen3_5_moe")
    usual_sections = (11, 11, 10)
    partial = True
    # Published with a layer that guesses tokens ahead, which the decoder does not have.
    decoder_prefixes: ClassVar = {"mtp.": None, **Qwen3VLAddOn.decoder_prefixes}

    @staticmethod
    def check_tower(whole: dict[str, Any]) -> None:
        vision = whole["vision_config"]
        check_fields(vision, "vision_config", deepstack_visual_indexes=(None, []))
        check_fields(whole["text_config"], "text_config", attn_output_gate=(None, True))
        Qwen3VLAddOn.check_tower(whole)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        return decoder_config(config, f"{config['model_type']}_text", cls.usual_sections, True)

    def prepare_decoder(self, text_model: nn.Module) -> None:
        for layer in text_model.layers:
            if not layer.is_linear:
                layer.self_attn.rope = MRope(layer.self_attn.rope, self.axes())
