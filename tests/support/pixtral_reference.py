"""A tiny random Pixtral of transformers, written as each tool writes it."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from support import published_templates as published
from support import sizes
from support.pictures import photographs
from support.processors import Built
from vision_add_ons.errors import BrokenConfig, BrokenTokenizer, UnsupportedCheckpoint
from vision_add_ons.testing import (
    Conversation,
    Reference,
    as_text,
    random_weights,
)

IMG, BREAK, END = 80, 81, 82
Fields = Mapping[str, Any]
NONE: Fields = {}

TEXT: dict[str, Any] = {
    **sizes.TEXT,
    "model_type": "mistral",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3e5},
    "sliding_window": None,
}
VISION: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 8,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "axial", "rope_theta": 500.0},
}


LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
PROCESSOR: tuple[tuple[Any, ...], ...] = (
    (
        "processor_config.json/image_break_token",
        "[LINE]",
        BrokenTokenizer,
        r"'\[LINE\]'.* image_break_token",
    ),
    ("preprocessor_config.json/do_resize", False, UnsupportedCheckpoint),
    ("preprocessor_config.json/do_center_crop", True, UnsupportedCheckpoint),
    ("preprocessor_config.json/size", {"shortest_edge": 48}, BrokenConfig),
    ("preprocessor_config.json/size", {"longest_edge": "48"}, BrokenConfig),
)


class PixtralReference(Reference):
    name = "pixtral"
    dialects = ("transformers 5", "transformers 4", "mlx-vlm", "state dict")
    """The last with the names that transformers 5 has in memory."""
    image_token = IMG
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        ("vision_config.model_type", "clip_vision_model", UnsupportedCheckpoint),
        ("vision_config.model_type", "nobody_knows", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "quick_gelu", UnsupportedCheckpoint),
        ("vision_config.num_channels", 4, UnsupportedCheckpoint),
        ("vision_config.head_dim", 16, UnsupportedCheckpoint),
        ("vision_config.patch_size", 0, BrokenConfig),
        ("vision_config.patch_size", [8, 8], BrokenConfig),
        ("vision_config.num_hidden_layers", 0, BrokenConfig),
        (
            "vision_config.rope_parameters",
            LINEAR,
            UnsupportedCheckpoint,
            r"vision_config\.rope_parameters\.rope_type",
        ),
        ("vision_config", ["pixtral"], BrokenConfig),
        ("projector_hidden_act", "relu", UnsupportedCheckpoint),
        ("vision_feature_select_strategy", "default", UnsupportedCheckpoint),
        ("vision_feature_layer", 4, BrokenConfig),
        ("vision_feature_layer", [-1, -5], BrokenConfig),
        ("vision_feature_layer", [], BrokenConfig),
        ("quantization_config", {"quant_method": "fp8"}, UnsupportedCheckpoint),
        ("text_config.quantization_config", {"quant_method": "awq"}, UnsupportedCheckpoint),
        ("text_config.model_type", "qwen2", UnsupportedCheckpoint),
        ("image_token_index", BREAK, BrokenConfig, f"image_token_index is {BREAK}, .* {IMG}"),
        *PROCESSOR,
        ("processor_config.json/patch_size", 16, UnsupportedCheckpoint),
        ("processor_config.json/spatial_merge_size", 2, UnsupportedCheckpoint),
    )
    processors: ClassVar[tuple[dict[str, Any], ...]] = (
        {"size": {"longest_edge": 1024}},
        {"size": {"longest_edge": 100}},
        {"size": {"height": 60, "width": 200}, "image_mean": [0.1, 0.2, 0.3]},
    )
    pixel_sizes = (
        (1, 50),
        (60, 1),
        (31, 33),
        (1300, 900),
        (100, 8),
        (101, 99),
        (7, 400),
        (200, 60),
    )
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "image_token": (IMG, "[IMG]"),
        "image_break_token": (BREAK, "[IMG_BREAK]"),
        "image_end_token": (END, "[IMG_END]"),
    }
    control_tokens: ClassVar[tuple[str, ...]] = ("[INST]", "[/INST]")
    templates: ClassVar[dict[str, str]] = {
        "as published": published.PIXTRAL,
        "as first published": published.PIXTRAL_FIRST,
    }
    texts = (("Look: [IMG]\nNow say what it is,[IMG][INST]!", 2), ("Nothing\n\n\nhere", 0))
    asked: ClassVar[str] = (
        "<s>[INST][IMG]What  is\n\nthis?[/INST]A square.</s>[INST]Be  brief.\n\n\n{marks}\n"
        "And these?[/INST]"
    )
    """A conversation with a system message, and so many pictures in its second question."""
    cell = 8
    """A row of embeddings stands for so many pixels a side."""
    merged = 1
    """And for so many patches."""
    longest: ClassVar[int] = 48
    """The second of the pictures shown is longer."""

    def __init__(self, seed: int, vision: Fields = NONE, **changes: Any) -> None:
        fields = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", **changes}
        config = LlavaConfig(
            text_config=TEXT,
            vision_config={**VISION, **vision},
            image_token_index=IMG,
            attn_implementation="eager",
            **fields,
        )
        self.model = random_weights(LlavaForConditionalGeneration(config), seed)
        self.processor = PixtralImageProcessorPil(size={"longest_edge": self.longest})

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        settings = {
            "patch_size": self.cell // self.merged,
            "spatial_merge_size": self.merged,
        }
        (folder / "processor_config.json").write_text(json.dumps(settings))
        if dialect == "transformers 5":
            return
        file = folder / "model.safetensors"
        if dialect == "state dict":
            state = {name: t.contiguous() for name, t in self.model.state_dict().items()}
            save_file(state, file, metadata={"format": "pt"})
            return
        config = json.loads((folder / "config.json").read_text())
        write_flat(config)
        if dialect == "mlx-vlm":
            self.convert(config)
            tensors = {
                name.replace("vision_tower.", "vision_tower.vision_model."): t
                for name, t in load_file(file).items()
            }
            name = "vision_tower.vision_model.patch_conv.weight"
            tensors[name] = tensors[name].permute(0, 2, 3, 1).contiguous()
            save_file(tensors, file, metadata={"format": "mlx"})
        (folder / "config.json").write_text(json.dumps(config))

    def convert(self, config: dict[str, Any]) -> None:
        """What mlx-vlm calls it, with its defaults left out."""
        config["model_type"] = "pixtral"
        del config["vision_feature_layer"], config["vision_feature_select_strategy"]

    def grid(self, image: Image.Image) -> tuple[int, int]:
        height, width = self._processed([image])["image_sizes"][0].tolist()
        return height // self.cell, width // self.cell

    def block(self, image: Image.Image) -> list[int]:
        lines, columns = self.grid(image)
        return ([IMG] * columns + [BREAK]) * (lines - 1) + [IMG] * columns + [END]

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(**self._processed([image]))
        return features.pooler_output[0].numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra = self._processed(images) if images else {}
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([tokens + answer]), **extra)
        return out.logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        # Sides become multiples of a row's, whatever patch size is saved.
        patch = {"height": self.cell, "width": self.cell}
        made = PixtralImageProcessorPil(**settings)([image], patch_size=patch, return_tensors="np")
        return made["pixel_values"][0].transpose(1, 2, 0)

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        lines, columns = add_on.grid(image.size)
        return np.array(add_on.pixels(image, columns * self.cell, lines * self.cell))

    def conversations(self) -> list[Conversation]:
        sizes = ((40, 30), (self.cell, self.cell), (9, 47), (120, 20))
        pictures = [Image.new("RGB", size) for size in sizes]
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief.\n"},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "\nAnd these?", "images": pictures[1:count]},
                ],
                self.asked.format(marks="[IMG]" * (count - 1)),
            )
            for count in (1, 2, 4)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = _processor_class()(self.processor, tokenizer, **self._sizes())
        made = whole(images=images or None, text=text, add_special_tokens=False)
        return [int(token) for token in made["input_ids"][0]]

    def own_processor(self, folder: Path) -> Any:
        return Built(_processor_class(), self.processor, folder, **self._sizes())

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if message["role"] != "user":
            return as_text(message)
        if template == "as published" or isinstance(message["content"], str):
            return message
        parts = [{**part, "content": part.get("text")} for part in message["content"]]
        return {**message, "content": parts}

    def _sizes(self) -> dict[str, int]:
        return {"patch_size": self.cell // self.merged, "spatial_merge_size": self.merged}

    def _processed(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        patch = {"height": self.cell, "width": self.cell}  # as the whole processor has it
        return dict(self.processor(images, patch_size=patch, return_tensors="pt"))


def write_flat(config: dict[str, Any]) -> None:
    """Turn a config into what transformers 4 wrote: rope flat, ties and defaults left out."""
    config.pop("tie_word_embeddings")
    for part in (config["text_config"], config["vision_config"]):
        if part["rope_parameters"]["rope_type"] != "yarn":  # known to transformers 5 only
            part["rope_theta"] = part.pop("rope_parameters")["rope_theta"]
        part.pop("attention_dropout")
    config["text_config"].pop("tie_word_embeddings")
    config["vision_config"].pop("num_channels")


def _processor_class() -> Any:
    """transformers' `PixtralProcessor`, which it withholds where there is no torchvision.

    Only the check for it and an import that goes unused here are left out.
    """
    file = Path(image_processing_pil_pixtral.__file__).with_name("processing_pixtral.py")
    spec = importlib.util.spec_from_file_location("transformers.models.pixtral.processing", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr("transformers.utils.import_utils.requires", lambda **_: lambda obj: obj)
        patch.setattr("transformers.utils.is_vision_available", lambda: False)
        spec.loader.exec_module(module)
    return module.PixtralProcessor
