"""LLaVA 1.6 against transformers, on tiny models with random weights."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from sightline_llava_next import LlavaNextAddOn
from test_sightline_llava import IMAGE, PATCH, SIDE, SQUARE, TEXT, VISION, LlavaReference
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from engine import load
from vision_add_ons.testing import Conformance, as_parts, as_text, random_weights

PARTS = """\
{%- for turn in messages -%}
  {%- if turn['role'] == 'system' -%}
    {{- '<<SYS>>\n' + turn['content'][0]['text'] + '\n<</SYS>>\n\n' -}}
  {%- elif turn['role'] == 'user' -%}
    {{- '[INST] ' -}}
    {%- for part in turn['content'] | selectattr('type', 'equalto', 'image') -%}
      {{- '<image>\n' -}}
    {%- endfor -%}
    {%- for part in turn['content'] | selectattr('type', 'equalto', 'text') -%}
      {{- part['text'] -}}
    {%- endfor -%}
    {{- ' [/INST]' -}}
  {%- elif turn['role'] == 'assistant' -%}
    {{- ' ' + turn['content'][0]['text'] + '</s> ' -}}
  {%- else -%}
    {{- raise_exception('Only system, user and assistant are known') -}}
  {%- endif -%}
{%- endfor -%}
"""
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


class LlavaNextReference(LlavaReference):
    name = "llava_next"
    sizes = ((40, 30), (28, 70))
    more_sizes = ((64, 64), (20, 27), (20, 33), (61, 8), (1, 90), (700, 500))
    control_tokens = ("[INST]", "[/INST]")
    templates: ClassVar = {"parts, the first alone": PARTS}
    processor_class = LlavaNextProcessor
    turn = "[INST] <image>\nWhat is this? [/INST]"
    refused = (
        *LlavaReference.refused[:-1],  # do_pad, which means another thing here
        ("vision_feature_select_strategy", "full"),
        ("image_grid_pinpoints", [[32, 64], [64, 33]]),
        ("image_grid_pinpoints", []),
        ("preprocessor_config.json/image_grid_pinpoints", PINPOINTS[1:]),
    )

    def __init__(self, seed: int) -> None:
        config = LlavaNextConfig(
            text_config={**TEXT, "model_type": "mistral"},
            vision_config=VISION,
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
            attn_implementation="eager",
        )
        self.model = random_weights(LlavaNextForConditionalGeneration(config), seed)
        self.processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
        )

    def block(self, image: Image.Image) -> list[int]:
        counter: Any = object.__new__(LlavaNextProcessor)
        counter.image_processor, counter.patch_size = self.processor, PATCH
        counter.num_additional_image_tokens = 0
        width, height = image.size
        return [IMAGE] * counter._get_number_of_features(height, width, SIDE, SIDE)

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return as_parts(message if message["role"] == "user" else as_text(message))

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        return super().pixels(image, settings)[0]


class TestLlavaNext(Conformance):
    add_on = LlavaNextAddOn
    reference = LlavaNextReference
    load = staticmethod(load)
