"""A tiny random Gemma 3 of transformers, written as each tool writes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from support import published_templates as published
from support.pictures import photographs
from support.processors import Built
from support.sizes import SIGLIP, TEXT
from vision_add_ons.errors import BrokenConfig, MissingWeight, UnsupportedCheckpoint
from vision_add_ons.testing import Conversation, Reference, random_weights

BEGIN, ROW, END = 80, 81, 82
ROWS = 16


class Gemma3Reference(Reference):
    name = "gemma3"
    dialects = ("transformers 5", "transformers 4", "mlx-vlm")
    image_token = ROW
    decoder_scale = 8.0
    refused = (
        ("vision_config.model_type", "clip_vision_model", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "gelu", UnsupportedCheckpoint),
        ("vision_config.num_channels", 1, UnsupportedCheckpoint),
        ("vision_config.patch_size", 0, BrokenConfig),
        ("vision_config.num_attention_heads", -1, BrokenConfig),
        ("vision_config.num_attention_heads", 5, BrokenConfig),
        ("text_config.use_bidirectional_attention", True, UnsupportedCheckpoint),
        ("text_config.final_logit_softcapping", 30.0, UnsupportedCheckpoint),
        ("text_config.tie_word_embeddings", False, MissingWeight, r"lm_head\.weight"),
        ("mm_tokens_per_image", 15, BrokenConfig),
        ("mm_tokens_per_image", 9, BrokenConfig),
        ("preprocessor_config.json/do_pan_and_scan", True, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_resize", False, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_normalize", False, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"height": 32, "width": 64}, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"shortest_edge": 64}, UnsupportedCheckpoint),
    )
    processors = ({}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]})
    pixel_sizes = (*Reference.pixel_sizes, (64, 64))
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "boi_token": (BEGIN, "<start_of_image>"),
        "image_token": (ROW, "<image_soft_token>"),
        "eoi_token": (END, "<end_of_image>"),
    }
    control_tokens = ("<start_of_turn>", "<end_of_turn>")
    templates: ClassVar[dict[str, str]] = {"as published": published.GEMMA3}
    texts = (
        ("Look:\n<start_of_image>\nNow say what it is, and this <start_of_image>!", 2),
        ("Nothing to see\n\n\nhere", 0),
    )

    def __init__(self, seed: int) -> None:
        text = {
            **TEXT,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 24,
            "sliding_window": 24,
            "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        }
        config = Gemma3Config(
            text_config=text,
            vision_config={**SIGLIP, "patch_size": 8},
            mm_tokens_per_image=ROWS,
            image_token_index=ROW,
            boi_token_index=BEGIN,
            eoi_token_index=END,
            attn_implementation="eager",
        )
        self.model = random_weights(Gemma3ForConditionalGeneration(config), seed)
        self.processor = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if dialect == "transformers 5":
            return
        config = json.loads((folder / "config.json").read_text())
        text = config["text_config"]
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope["full_attention"]["rope_theta"]
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
        del text["layer_types"]
        text["sliding_window_pattern"] = 3
        (folder / "config.json").write_text(json.dumps(config))
        tensors = load_file(folder / "model.safetensors")
        tensors = {_published(name): t for name, t in tensors.items()}
        if dialect == "mlx-vlm":
            name = "vision_tower.vision_model.embeddings.patch_embedding.weight"
            tensors[name] = tensors[name].permute(0, 2, 3, 1).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def block(self, image: Image.Image) -> list[int]:
        return [ROW] * ROWS

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(self._pixels([image]))
        return features.pooler_output[0].numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        ids = torch.tensor([tokens + answer])
        extra: dict[str, Any] = {}
        if images:
            extra = {
                "pixel_values": self._pixels(images),
                "token_type_ids": (ids == ROW).long(),
            }
        with torch.no_grad():
            return self.model(input_ids=ids, **extra).logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        theirs = Gemma3ImageProcessorPil(**settings)
        return theirs([image], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        return np.array(add_on.pixels(image, 64, 64))

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", (30 + i, 20)) for i in range(3)]
        mark = "<start_of_image>"
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief.\n"},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "\nAnd these?", "images": pictures[1:count]},
                ],
                f"<s><start_of_turn>user\nBe  brief.\n\n\n{mark}What  is\n\nthis?<end_of_turn>\n"
                "<start_of_turn>model\nA square.<end_of_turn>\n"
                f"<start_of_turn>user\n{mark * (count - 1)}And these?<end_of_turn>\n"
                "<start_of_turn>model\n",
            )
            for count in (1, 2, 3)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer, image_seq_length=ROWS)
        made = whole(images=images or None, text=text, add_special_tokens=False)
        return list(made["input_ids"][0])

    def own_processor(self, folder: Path) -> Any:
        return Built(Gemma3Processor, self.processor, folder, image_seq_length=ROWS)

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return published.with_first_part(message, "system")

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return self.processor(images, return_tensors="pt")["pixel_values"]


def _published(name: str) -> str:
    """A name as Google published it, from transformers 5's."""
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        rest = name.removeprefix("vision_tower.").removeprefix("vision_model.")
        return f"vision_tower.vision_model.{rest}"
    if name.startswith("language_model.") and not name.startswith("language_model.model."):
        return name.replace("language_model.", "language_model.model.", 1)
    return name
