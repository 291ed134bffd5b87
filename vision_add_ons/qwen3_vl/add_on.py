"""The add-on itself: Qwen2-VL's, with another tower, and rows that go into several layers.

Semantics: transformers' `Qwen3VLForConditionalGeneration` and `Qwen3VLMoeForConditionalGeneration`.
For pictures, preprocessing and the grid of positions are Qwen2-VL's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.base import ExpandedPrompt, Picture
from vision_add_ons.chat_ml import chat_ml
from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.layer_features import deepstack_views, take_features
from vision_add_ons.mrope import interleaved
from vision_add_ons.qwen2_vl.add_on import IMAGE
from vision_add_ons.qwen2_vl.config import check_tower, decoder_config
from vision_add_ons.qwen2_vl.own_tower import OwnTower
from vision_add_ons.qwen3_vl.tower import Qwen3VLTower

CHAT_TEMPLATE = chat_ml(IMAGE)


class Qwen3VLAddOn(OwnTower):
    """Qwen3-VL, for pictures; not for videos. Its decoder is a Qwen3, with experts or without.

    A picture's rows have the features beside them that are added behind the decoder's first layers
    (DeepStack): [row_count, hidden_size * (1 + layers)].
    """

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    usual_sections = (24, 20, 20)

    @staticmethod
    def check_tower(whole: dict[str, Any]) -> None:
        check_tower(whole, width="hidden_size", out_width="out_hidden_size")
        vision, where = whole["vision_config"], "vision_config"
        check_fields(vision, where, hidden_act=("gelu_pytorch_tanh",))
        rope = whole["text_config"]["rope_parameters"]
        check_fields(rope, "text_config.rope_parameters", mrope_interleaved=(True, None))
        positive(vision, where, "intermediate_size", "num_position_embeddings")
        deep, depth = vision.get("deepstack_visual_indexes") or [], vision["depth"]
        layers = whole["text_config"]["num_hidden_layers"]
        if deep != sorted({i for i in deep if i in range(depth)}) or len(deep) > layers:
            raise BrokenConfig(
                f"{where}.deepstack_visual_indexes must be numbers of the tower's {depth} layers "
                f"in ascending order, not more than the decoder's {layers} layers, not {deep}"
            )

    def build_tower(self, vision: dict[str, Any]) -> nn.Module:
        tower = Qwen3VLTower(vision)
        self.features = len(tower.deep)
        return tower

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        mixed = config["model_type"] == "qwen3_vl_moe"
        text, assumed = decoder_config(
            config, "qwen3_moe" if mixed else "qwen3", cls.usual_sections
        )
        # Whatever a config says: transformers' always does so.
        return text | {"norm_topk_prob": True}, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """Qwen's form of ChatML."""
        return CHAT_TEMPLATE

    def axes(self) -> list[int]:
        return interleaved(self.sections)

    def prepare_decoder(self, text_model: nn.Module) -> None:
        super().prepare_decoder(text_model)
        take_features(text_model.layers[: self.features])

    def cache_views(
        self,
        caches: Sequence[Any],
        prompt: ExpandedPrompt,
        encode: Callable[[Picture], mx.array] | None = None,
    ) -> list[Any]:
        views = super().cache_views(caches, prompt)
        if not self.features:
            return views
        make, width = encode or self.encode_image, self.tower.out
        return deepstack_views(views, prompt.spans, make, width, self.features)
