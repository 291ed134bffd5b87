"""LLaVA 1.5 against transformers, on tiny models with random weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sightline_llava import LlavaAddOn
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from engine import load
from vision_add_ons.testing import (
    BOS,
    EOS,
    PAD,
    VOCAB,
    Conformance,
    Conversation,
    Kit,
    Reference,
    as_parts,
    random_weights,
)
from vision_add_ons.testing.answer_checks import check_two_pictures
from vision_add_ons.testing.row_checks import check_rows

IMAGE = 80
SIDE, PATCH, ROWS = 32, 8, 16
SQUARE = {"height": SIDE, "width": SIDE}

TEXT: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
PARTS = """\
{%- for turn in messages -%}
  {%- if turn['role'] != 'system' -%}{{- turn['role'].upper() + ': ' -}}{%- endif -%}
  {%- for part in turn['content'] | selectattr('type', 'equalto', 'image') -%}
    {{- '<image>\n' -}}
  {%- endfor -%}
  {%- for part in turn['content'] | selectattr('type', 'equalto', 'text') -%}
    {{- part['text'] | trim + ' ' -}}
  {%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


class LlavaReference(Reference):
    name = "llava"
    image_token = IMAGE
    dialects = ("transformers 5", "transformers 4", "mlx-vlm", "in memory")
    special_tokens: ClassVar = {"image_token": (IMAGE, "<image>")}
    templates: ClassVar = {"parts, trimmed": PARTS}
    processor_class: ClassVar[Any] = LlavaProcessor
    texts = (("<s>USER: <image>\n<image>\nCompare. ASSISTANT:", 2),)
    turn = "USER: <image>\nWhat is this? ASSISTANT:"
    pixel_sizes = ((1, 50), (60, 1), (31, 33), (33, 32), (32, 35), (1300, 900))
    processors = ({}, {"resample": 2, "image_mean": [0.5, 0.4, 0.3]})
    refused = (
        ("vision_config.model_type", "siglip_vision_model"),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_channels", 4),
        ("vision_config.patch_size", 0),
        ("projector_hidden_act", "relu"),
        ("vision_feature_layer", 4),
        ("vision_feature_layer", []),
        ("text_config.model_type", "qwen2"),
        ("preprocessor_config.json/size", {"shortest_edge": SIDE + 1}),
        ("preprocessor_config.json/crop_size", {"height": SIDE, "width": SIDE - 1}),
        ("preprocessor_config.json/do_center_crop", False),
        ("preprocessor_config.json/do_resize", False),
        ("preprocessor_config.json/do_pad", True),
    )

    def __init__(self, seed: int, **changes: Any) -> None:
        fields = {"text_config": TEXT, "vision_config": VISION, **changes}
        config = LlavaConfig(**fields, image_token_index=IMAGE, attn_implementation="eager")
        self.model = random_weights(LlavaForConditionalGeneration(config), seed)
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        file = folder / "model.safetensors"
        weights = load_file(file)
        if dialect == "in memory":
            weights = {name: w.contiguous() for name, w in self.model.state_dict().items()}
        elif dialect != "transformers 5":
            config = json.loads((folder / "config.json").read_text())
            text = config["text_config"]
            text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
            for part in (config, text):
                del part["tie_word_embeddings"]
            # What equals the defaults of its class was left out.
            for name in ("hidden_act", "layer_norm_eps", "num_channels", "attention_dropout"):
                del config["vision_config"][name]
            (folder / "config.json").write_text(json.dumps(config))
            longer = "vision_tower.vision_model."
            weights = {name.replace("vision_tower.", longer): w for name, w in weights.items()}
            weights[f"{longer}embeddings.position_ids"] = torch.arange(ROWS + 1)[None]
        if dialect == "mlx-vlm":
            name = f"{longer}embeddings.patch_embedding.weight"
            weights[name] = weights[name].permute(0, 2, 3, 1).contiguous()
        save_file(weights, file, metadata={"format": "pt"})

    def block(self, image: Image.Image) -> list[int]:
        whole = self.model.config.vision_feature_select_strategy == "full"
        return [IMAGE] * (ROWS + whole)

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            return self.model.get_image_features(**self.inputs([image])).pooler_output[0].numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra = self.inputs(images) if images else {}
        with torch.no_grad():
            return self.model(torch.tensor([tokens + answer]), **extra).logits[0].numpy()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        processor = type(self.processor)(**settings)
        return processor(image, return_tensors="np")["pixel_values"]

    def our_pixels(self, add_on: LlavaAddOn, image: Image.Image) -> np.ndarray:
        return np.array(add_on.squares(image)).transpose(0, 3, 1, 2)

    def own_processor(self, folder: Path) -> Any:
        return self.processor_class(
            self.processor,
            AutoTokenizer.from_pretrained(folder),
            PATCH,
            "default",
            (folder / "chat_template.jinja").read_text(),
            num_additional_image_tokens=1,  # the class token's
        )

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return as_parts(message)

    def conversations(self) -> list[Conversation]:
        image = Image.new("RGB", self.sizes[0], "teal")
        asked = {"role": "user", "content": "What is this?", "images": [image]}
        answered = {"role": "assistant", "content": "Teal."}
        text = f"<s>{self.turn} Teal.</s>{self.turn}"
        return [Conversation([asked, answered, asked], text)]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        for image in images:
            text = text.replace("<image>", "<row>" * len(self.block(image)), 1)
        return tokenizer.encode(text.replace("<row>", "<image>"))

    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images, return_tensors="pt"))


class TestLlava(Conformance):
    add_on = LlavaAddOn
    reference = LlavaReference
    load = staticmethod(load)


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_feature_layer": [-2, 0, 3], "vision_feature_select_strategy": "full"},
        {"text_config": {**TEXT, "model_type": "mistral"}, "multimodal_projector_bias": False},
        {"vision_config": {**VISION, "hidden_act": "gelu"}, "projector_hidden_act": "quick_gelu"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_choices(changes: dict[str, Any], tmp_path: Path) -> None:
    seed = TestLlava.seed_of_run()
    kit = Kit(LlavaAddOn, LlavaReference(seed, **changes), load, tmp_path, seed)
    check_rows(kit)
    check_two_pictures(kit)
    kit.close()
