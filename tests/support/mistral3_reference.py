"""Tiny random Mistral 3 models of transformers, with both decoders."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import Mistral3Config, Mistral3ForConditionalGeneration
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from support import published_templates as published
from support.pixtral_reference import IMG, NONE, PROCESSOR, TEXT, VISION, Fields, PixtralReference
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import random_weights


class Mistral3Reference(PixtralReference):
    name = "mistral3"
    refused = (
        ("spatial_merge_size", 0, BrokenConfig),
        ("spatial_merge_size", 3, UnsupportedCheckpoint),
        ("vision_feature_layer", [0, -1], UnsupportedCheckpoint),
        ("projector_hidden_act", "relu", UnsupportedCheckpoint),
        ("vision_config", {"model_type": "siglip_vision_model"}, UnsupportedCheckpoint),
        ("quantization_config", {"quant_method": "fp8"}, UnsupportedCheckpoint),
        *PROCESSOR,
    )
    processors = ({"size": {"longest_edge": 700}}, {"size": {"longest_edge": 100}})
    control_tokens = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")
    templates: ClassVar[dict[str, str]] = {"as published": published.MISTRAL3}
    asked = (
        "<s>[SYSTEM_PROMPT]Be  brief.\n[/SYSTEM_PROMPT][INST][IMG]What  is\n\nthis?[/INST]"
        "A square.</s>[INST]{marks}\nAnd these?[/INST]"
    )
    text: ClassVar[dict[str, Any]] = TEXT

    def __init__(self, seed: int, vision: Fields = NONE, **changes: Any) -> None:
        config = Mistral3Config(
            text_config=self.text,
            vision_config={**VISION, "patch_size": 4, "hidden_act": "gelu", **vision},
            image_token_index=IMG,
            attn_implementation="eager",
            **{"tie_word_embeddings": False, **changes},
        )
        self.merged = config.spatial_merge_size
        self.cell = 4 * self.merged
        self.model = random_weights(Mistral3ForConditionalGeneration(config), seed)
        self.processor = PixtralImageProcessorPil(size={"longest_edge": self.longest})

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return published.with_first_part(message, "system", "assistant", "tool")

    def rows(self, image: Image.Image) -> np.ndarray:
        # transformers fails on a picture of one row that is alone.
        alone = self.block(image).count(IMG) > 1
        with torch.no_grad():
            inputs = self._processed([image] if alone else [image, image])
            features = self.model.model.get_image_features(**inputs)
        return features.pooler_output[0].numpy()

    def convert(self, config: dict[str, Any]) -> None:
        """mlx-vlm keeps the name."""


class Ministral3Reference(Mistral3Reference):
    """The decoder with YaRN, and queries that grow with the position."""

    name = "mistral3 (ministral3)"
    control_tokens = (
        *Mistral3Reference.control_tokens,
        "[TOOL_CALLS]",
        "[CALL_ID]",
        "[ARGS]",
        "[TOOL_RESULTS]",
        "[TOOL_CONTENT]",
        "[/TOOL_RESULTS]",
    )
    templates: ClassVar[dict[str, str]] = {"with tools": published.MISTRAL3_TOOLS}
    text: ClassVar[dict[str, Any]] = {
        **TEXT,
        "model_type": "ministral3",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    }
