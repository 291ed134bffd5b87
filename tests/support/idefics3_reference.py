"""Tiny random Idefics3 and SmolVLM models of transformers, written as each tool writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from support import published_templates as published
from support import sizes
from support.pictures import photographs
from support.processors import Built
from vision_add_ons.errors import BrokenConfig, BrokenTokenizer, UnsupportedCheckpoint
from vision_add_ons.testing import Conversation, Reference, as_parts, random_weights

IMAGE, FAKE, WHOLE, END = 80, 81, 82, 83
SIDE, MOST = 34, 3
"""Pixels along a tile's side, and tiles along a picture's."""
TILES = {(r, c): 84 + MOST * (r - 1) + c - 1 for r in (1, 2, 3) for c in (1, 2, 3)}
LINE_END, LAST_LINE_END = 4, 5

TEXT: dict[str, Any] = {
    **sizes.TEXT,
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "layer_norm_eps": 0.05,  # large enough for another to be seen
}
# Beside what is read, as the training code left it in published files, and its tools' notes.
LEFT = {
    "text_config": {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "is_llama_config": True,
        "neftune_noise_alpha": 0.0,
        "perceiver_config": {
            "hidden_act": "silu",
            "model_type": "vllama3",
            "qk_layer_norms": False,
        },
        "pixel_shuffle_factor": 2,
        "qk_layer_norms": False,
        "rope_interleaved": False,
        "torch_dtype": "float32",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "use_resampler": False,
    },
    "vision_config": {
        "max_image_size": {"longest_edge": SIDE},
        "size": {"longest_edge": MOST * SIDE},
        "tie_word_embeddings": False,
        "use_base_siglip": True,
    },
}


class Idefics3Reference(Reference):
    name = "idefics3"
    dialects = ("transformers 5", "transformers 4", "mlx-vlm")
    image_token = IMAGE
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        ("vision_config.model_type", "siglip_vision_model", UnsupportedCheckpoint),
        ("vision_config.model_type", "nobody_knows", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "gelu", UnsupportedCheckpoint),
        ("vision_config.num_channels", 4, UnsupportedCheckpoint),
        ("vision_config.patch_size", 0, BrokenConfig),
        ("vision_config.patch_size", [8, 8], BrokenConfig),
        ("vision_config.patch_size", 1, UnsupportedCheckpoint),
        ("vision_config.image_size", 33, UnsupportedCheckpoint, "max_image_size"),
        ("vision_config.image_size", 4, UnsupportedCheckpoint),
        ("vision_config.num_hidden_layers", 0, BrokenConfig),
        ("vision_config.num_attention_heads", 5, BrokenConfig),
        ("scale_factor", 5, BrokenConfig),
        ("scale_factor", 0, BrokenConfig),
        ("image_token_id", WHOLE, BrokenConfig, f"image_token_id is {WHOLE}, .* {IMAGE}"),
        ("image_token_id", 96, UnsupportedCheckpoint),
        ("text_config", None, UnsupportedCheckpoint),
        ("text_config.model_type", "qwen2", UnsupportedCheckpoint),
        ("quantization_config", {"quant_method": "fp8"}, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_resize", False, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_image_splitting", "yes", UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"height": 64, "width": 64}, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"longest_edge": "64"}, BrokenConfig),
        ("preprocessor_config.json/size", 64, UnsupportedCheckpoint),
        ("preprocessor_config.json/max_image_size", {"longest_edge": 64}, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"longest_edge": 200}, BrokenTokenizer),
        ("processor_config.json/image_seq_len", 5, UnsupportedCheckpoint),
        ("tokenizer_config.json/fake_image_token", "<image>", UnsupportedCheckpoint),
        (
            "tokenizer_config.json/extra_special_tokens",
            {"global_image_token": {"content": "<whole>"}},
            UnsupportedCheckpoint,
            "global_image_token",
        ),
    )
    processors = (
        {},
        {"resample": 2, "image_mean": [0.5, 0.4, 0.3]},
        {"size": {"longest_edge": 67}},
        {"size": {"longest_edge": 20}},
        {"do_image_splitting": False},
    )
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "image_token": (IMAGE, "<image>"),
        "fake_image_token": (FAKE, "<fake_token_around_image>"),
        "global_image_token": (WHOLE, "<global-img>"),
        "end_of_utterance_token": (END, "<end_of_utterance>"),
        **{f"tile_{r}_{c}": (i, f"<row_{r}_col_{c}>") for (r, c), i in TILES.items()},
    }
    control_tokens = ("<|im_start|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
    templates: ClassVar[dict[str, str]] = {
        "as published": published.IDEFICS3,
        "Granite Docling's": published.GRANITE_DOCLING,
    }
    texts = (
        ("<s>User:<image>\n<image>\n\nCompare.<end_of_utterance>\nAssistant:", 2),
        ("Nothing\n\n\nhere", 0),
    )
    config_class: ClassVar[Any] = Idefics3Config
    model_class: ClassVar[Any] = Idefics3ForConditionalGeneration
    processor_class: ClassVar[Any] = Idefics3ImageProcessorPil
    longest: ClassVar[int] = MOST * SIDE
    fields: ClassVar[dict[str, Any]] = {"patch_size": 8, "scale_factor": 2}
    """Four patches and some pixels more along a side, which become two rows."""
    published_tower: ClassVar[str] = "idefics3"

    def __init__(self, seed: int, side: int = SIDE, splitting: bool = True, **changes: Any) -> None:
        fields = {**self.fields, **changes}
        vision = {**VISION, "image_size": side, "patch_size": fields.pop("patch_size")}
        config = self.config_class(
            text_config=TEXT,
            vision_config=vision,
            image_token_id=IMAGE,
            attn_implementation="eager",
            **fields,
        )
        self.model = random_weights(self.model_class(config), seed)
        self.count = (side // vision["patch_size"] // config.scale_factor) ** 2
        self.processor = self.processor_class(
            size={"longest_edge": self.longest * side // SIDE},
            max_image_size={"longest_edge": side},
            do_image_splitting=splitting,
        )

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        whole = {"image_seq_len": self.count}
        if dialect == "mlx-vlm":
            whole["image_processor"] = self.processor.to_dict()
        else:
            self.processor.save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps(whole))
        config = json.loads((folder / "config.json").read_text())
        if dialect == "transformers 4":
            self.write_as_published(config)
            (folder / "config.json").write_text(json.dumps(config))
        if dialect == "mlx-vlm":
            file = folder / "model.safetensors"
            tensors = {_converted(name): tensor for name, tensor in load_file(file).items()}
            name = "vision_model.embeddings.patch_embedding.weight"
            tensors[name] = tensors[name].permute(0, 2, 3, 1).contiguous()
            save_file(tensors, file, metadata={"format": "mlx"})

    def write_as_published(self, config: dict[str, Any]) -> None:
        """Fields as published, defaults left out."""
        text, vision = config["text_config"], config["vision_config"]
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
        for name in ("attention_bias", "attention_dropout", "hidden_act", "mlp_bias"):
            text.pop(name, None)
        text.pop("tie_word_embeddings")
        for name in ("attention_dropout", "hidden_act", "num_channels"):
            del vision[name]
        vision["model_type"] = self.published_tower
        for half, fields in LEFT.items():
            config[half] |= fields
        config["vocab_size"] = text["vocab_size"]

    def block(self, image: Image.Image) -> list[int]:
        done = self.processor(image, return_row_col_info=True, return_tensors="np")
        lines, columns = done["rows"][0][0], done["cols"][0][0]
        own = [IMAGE] * self.count
        tokens = []
        for line in range(1, lines + 1):
            for column in range(1, columns + 1):
                tokens += [FAKE, TILES[line, column], *own]
            tokens.append(LINE_END if line < lines else LAST_LINE_END)
        return [*tokens, FAKE, WHOLE, *own, FAKE]

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.get_image_features(**self._processed([image])).pooler_output
        return torch.cat(list(features)).numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra = self._processed(images) if images else {}
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([tokens + answer]), **extra).logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        made = self.processor_class(**settings)(image, return_tensors="np")["pixel_values"]
        return made[0].transpose(0, 2, 3, 1)

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        tiles = add_on.tiling.cut(image, add_on.pixels.resample)
        return np.array(add_on.pixels.normalised(tiles))

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", size) for size in ((40, 30), (9, 9), (9, 47))]
        turn, end = "<end_of_utterance>\n", "<end_of_utterance>\nAssistant:"
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief.\n"},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "\nAnd these?", "images": pictures[1:count]},
                ],
                f"<s>System: Be  brief.\n{turn}User:<image>What  is\n\nthis?{turn}"
                f"Assistant: A square.{turn}User:{'<image>' * (count - 1) or ' '}\nAnd these?{end}",
            )
            for count in (1, 2, 3)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = self._whole(self.processor, tokenizer, image_seq_len=self.count)
        made = whole(images=[images] if images else None, text=[text], add_special_tokens=False)
        return [int(token) for token in made["input_ids"][0]]

    def own_processor(self, folder: Path) -> Any:
        return Built(self._whole, self.processor, folder, image_seq_len=self.count)

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return as_parts(message) if template == "as published" else message

    @staticmethod
    def _whole(*parts: Any, **settings: Any) -> Any:
        return Idefics3Processor(*parts, **settings)

    def _processed(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(self.processor([images], return_tensors="pt"))


class SmolVLMReference(Idefics3Reference):
    """The same by other names, with six patches along a side, and an odd size."""

    name = "smolvlm"
    config_class = SmolVLMConfig
    model_class = SmolVLMForConditionalGeneration
    processor_class = SmolVLMImageProcessorPil
    longest = MOST * SIDE - 1
    fields: ClassVar = {"patch_size": 5, "scale_factor": 3, "tie_word_embeddings": True}
    published_tower = "smolvlm_vision"

    @staticmethod
    def _whole(images: Any, tokenizer: Any, **settings: Any) -> Any:
        """transformers' own, without a processor for videos, which wants torchvision."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processing_smolvlm, "num2words", str)  # which tells videos' frames
            return PicturesOnly(images, tokenizer, SimpleNamespace(num_frames=1, fps=1), **settings)


class PicturesOnly(processing_smolvlm.SmolVLMProcessor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """What stands in for a processor of videos is none."""


def _converted(name: str) -> str:
    """mlx-vlm's name of a tensor."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("text_model.", "language_model.", 1)
