"""The add-on itself: Qwen2-VL's, with another tower, decoder, and sizes of pictures.

Semantics: transformers' `Glm4vForConditionalGeneration`, `Glm4vMoeForConditionalGeneration` and
`Glm4vProcessor`.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.base import VisionAddOn
from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.glm4v.preprocessing import Glm4vPatches
from vision_add_ons.glm4v.tower import Glm4vTower
from vision_add_ons.mrope import MRope, in_runs
from vision_add_ons.qwen2_vl.config import check_tower, decoder_config
from vision_add_ons.qwen2_vl.own_tower import OwnTower
from vision_add_ons.weights import channels_last

CHAT_TEMPLATE = """\
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
  {{- '<|' + message['role'] + '|>\\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {{- '<|begin_of_image|><|image|><|end_of_image|>' if part['type'] == 'image'
          else part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


class Glm4vAddOn(OwnTower):
    """GLM-4.1V, 4.5V and 4.6V, for pictures; not for videos.

    Their decoder is a GLM-4, with experts or without.
    """

    model_types = ("glm4v", "glm4v_moe")
    image_marks = ("<|image|>", "<|video|>", "<|begin_of_video|>")
    usual_sections = (8, 12, 12)
    partial = True
    # The frames of a video are marked as pictures are, behind its start.
    video_fields = ("video_token_id", "video_start_token_id")
    patches_class = Glm4vPatches

    @staticmethod
    def check_tower(whole: dict[str, Any]) -> None:
        check_tower(whole, width="hidden_size", out_width="out_hidden_size")
        vision, where = whole["vision_config"], "vision_config"
        check_fields(vision, where, hidden_act=("silu",))
        positive(vision, where, "intermediate_size", "image_size")
        if vision["image_size"] < vision["patch_size"]:
            raise BrokenConfig(
                f"{where}.image_size {vision['image_size']} is smaller than a patch, which is "
                f"{vision['patch_size']} pixels wide"
            )

    def build_tower(self, vision: dict[str, Any]) -> nn.Module:
        return Glm4vTower(vision)

    def tower_weights(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        width = self.tower.patch_embed.proj.weight.shape[0]
        return channels_last(super().tower_weights(weights), "downsample.weight", channels=width)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        VisionAddOn.decoder_config(config)  # transformers would take another model for it
        mixed = config["model_type"] == "glm4v_moe"
        kind = "glm4_moe" if mixed else "glm4"
        text, assumed = decoder_config(config, kind, cls.usual_sections, cls.partial)
        head_dim = text["hidden_size"] // text["num_attention_heads"]
        if mixed:
            own = {"head_dim": text.get("head_dim") or head_dim, "use_qk_norm": False}
            return text | own, assumed
        check_fields(text, "text_config", head_dim=(None, head_dim))
        # Where the config does not say, all of a head is turned, unlike in a GLM-4 by itself.
        rope = {"partial_rotary_factor": 1.0, **text["rope_parameters"]}
        text |= {"attention_bias": True, "head_dim": head_dim, "rope_parameters": rope}
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """GLM-4's turns, each behind a token for its role."""
        return CHAT_TEMPLATE

    def prepare_decoder(self, text_model: nn.Module) -> None:
        for layer in text_model.layers:
            rope = layer.self_attn.rope
            layer.self_attn.rope = MRope(rope, in_runs(self.sections), rope.traditional)
