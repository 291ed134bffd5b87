"""A tiny random Qwen2-VL of transformers, written as each tool writes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from support import published_qwen_templates as published
from support.pictures import photographs
from support.processors import Built
from support.sizes import DECODER
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import BOS, EOS, PAD, VOCAB, Conversation, Reference, random_weights

START, END, IMAGE, VIDEO = 80, 81, 82, 83
MERGE, PATCH = 2, 4
SECTIONS = [2, 3, 3]

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    **DECODER,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": SECTIONS},
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4, "mrope_section": SECTIONS}

REFUSED: tuple[tuple[Any, ...], ...] = (
    ("vision_config.model_type", "qwen3_vl_vision", UnsupportedCheckpoint),
    ("vision_config.hidden_act", "gelu", UnsupportedCheckpoint),
    ("vision_config.in_channels", 1, UnsupportedCheckpoint),
    ("vision_config.rope_parameters", LINEAR, UnsupportedCheckpoint, "rope_type"),
    ("vision_config.patch_size", 0, BrokenConfig),
    ("vision_config.patch_size", [4, 4], BrokenConfig),
    ("vision_config.patch_size", 8, UnsupportedCheckpoint),
    ("vision_config.temporal_patch_size", 1, UnsupportedCheckpoint),
    ("vision_config.spatial_merge_size", 4, UnsupportedCheckpoint, "merge_size"),
    ("vision_config.num_heads", 16, BrokenConfig),
    ("text_config.rope_parameters.mrope_section", [2, 2, 2], BrokenConfig),
    ("text_config.rope_parameters.mrope_section", [4, 4], BrokenConfig),
    ("text_config.rope_parameters", DYNAMIC, UnsupportedCheckpoint, "rope_type"),
    ("text_config.hidden_act", "gelu", UnsupportedCheckpoint),
    ("text_config.model_type", "qwen3", UnsupportedCheckpoint),
    ("preprocessor_config.json/patch_size", 14, UnsupportedCheckpoint),
    ("preprocessor_config.json/merge_size", 1, UnsupportedCheckpoint),
    ("preprocessor_config.json/temporal_patch_size", 1, UnsupportedCheckpoint),
    ("preprocessor_config.json/do_resize", False, UnsupportedCheckpoint),
    ("preprocessor_config.json/min_pixels", -1, BrokenConfig),
    ("preprocessor_config.json/min_pixels", 5000, BrokenConfig),
    ("preprocessor_config.json/max_pixels", 10**12, BrokenConfig),
    ("preprocessor_config.json/max_pixels", "many", BrokenConfig),
    (
        "preprocessor_config.json/size",
        {"height": 64, "width": 64},
        BrokenConfig,
        "size|min_pixels",
    ),
    ("preprocessor_config.json/size", 64, BrokenConfig),
)
"""By Qwen2.5-VL too."""


class WithoutVideos(Qwen2VLProcessor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let there be no video processor: it needs torchvision."""


class Qwen2VLReference(Reference):
    name = "qwen2_vl"
    dialects = ("transformers 5", "transformers 4", "module names", "mlx-vlm")
    image_token = IMAGE
    touching = False  # transformers tells pictures apart by the tokens between them
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *REFUSED,
        ("vision_config.hidden_size", 32, BrokenConfig),
        ("vision_config.embed_dim", 0, BrokenConfig),
    )
    processors = ({}, {"min_pixels": 40_000, "max_pixels": 1_003_520}, {"max_pixels": 30_000})
    pixel_sizes = ((1, 1), (1, 50), (190, 1), (3, 570), (8, 8), (1300, 900), (200, 1), (2200, 11))
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "image_token": (IMAGE, "<|image_pad|>"),
        "video_token": (VIDEO, "<|video_pad|>"),
        "vision_start_token": (START, "<|vision_start|>"),
        "vision_end_token": (END, "<|vision_end|>"),
    }
    control_tokens: ClassVar[tuple[str, ...]] = ("<|im_start|>", "<|im_end|>")
    templates: ClassVar[dict[str, str]] = {"as published": published.QWEN}
    texts = (
        ("Say what <|image_pad|> is, and <|vision_start|><|image_pad|><|vision_end|>!", 2),
        ("Nothing to see\n\n\nhere", 0),
    )

    config_class: ClassVar[Any] = Qwen2VLConfig
    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration
    processor_class: ClassVar[Any] = WithoutVideos
    vision: ClassVar[dict[str, Any]] = {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "hidden_size": TEXT["hidden_size"],
    }

    text: ClassVar[dict[str, Any]] = TEXT
    spread: ClassVar[float] = 0.7
    processing: ClassVar[dict[str, Any]] = {"min_pixels": 512, "max_pixels": 4096}

    def __init__(self, seed: int, tied: bool = False, **text: Any) -> None:
        config = self.config_class(
            text_config={**self.text, **text},
            tie_word_embeddings=tied,
            vision_config={**self.vision, "patch_size": PATCH, "spatial_merge_size": MERGE},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
            attn_implementation="eager",
        )
        self.model = random_weights(self.model_class(config), seed, self.spread)
        self.processor = Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=MERGE, **self.processing
        )

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if dialect == "transformers 5":
            return
        if dialect != "module names":
            _write_as_published(folder)
        file = folder / "model.safetensors"
        tensors = {_renamed(name, dialect): t for name, t in load_file(file).items()}
        if dialect == "mlx-vlm":
            name = "vision_tower.patch_embed.proj.weight"
            tensors[name] = tensors[name].permute(0, 2, 3, 4, 1).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})

    def block(self, image: Image.Image) -> list[int]:
        return [IMAGE] * (int(self._pixels([image])["image_grid_thw"].prod()) // MERGE**2)

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(**self._pixels([image]))
        return features.pooler_output[0].numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        ids = torch.tensor([tokens + answer])
        extra: dict[str, Any] = {}
        if images:
            extra = {**self._pixels(images), "mm_token_type_ids": (ids == IMAGE).int()}
        with torch.no_grad():
            return self.model(input_ids=ids, **extra).logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        theirs = Qwen2VLImageProcessorPil(**settings)
        made = theirs([image], input_data_format="channels_last", return_tensors="np")
        return made["pixel_values"]

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        return np.array(add_on.patches.values(add_on.patches.cut(image)))

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", (30 + 9 * i, 40)) for i in range(3)]
        mark = "<|vision_start|><|image_pad|><|vision_end|>"
        found = [
            Conversation(
                [
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "And these?", "images": pictures[1:count]},
                ],
                "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                f"<|im_start|>user\n{mark}What  is\n\nthis?<|im_end|>\n"
                "<|im_start|>assistant\nA square.<|im_end|>\n"
                f"<|im_start|>user\n{mark * (count - 1)}And these?<|im_end|>\n"
                "<|im_start|>assistant\n",
            )
            for count in (1, 2, 3)
        ]
        own_system = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ]
        text = (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        return [*found, Conversation(own_system, text)]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = self.processor_class(self.processor, tokenizer)
        return list(whole(images=images or None, text=text)["input_ids"][0])

    def own_processor(self, folder: Path) -> Any:
        return Built(self.processor_class, self.processor, folder)

    def _pixels(self, images: list[Image.Image]) -> Any:
        return self.processor(images, return_tensors="pt")


def _renamed(name: str, dialect: str) -> str:
    """A published name, which transformers 5 saves too, as its modules or mlx-vlm have it."""
    if dialect == "module names":
        name = name.replace("model.", "model.language_model.", 1)
        return name.replace("visual.", "model.visual.", 1)
    if dialect == "mlx-vlm":
        name = name.replace("visual.", "vision_tower.", 1)
        return name if name.startswith("vision_tower.") else f"language_model.{name}"
    return name


def _write_as_published(folder: Path) -> None:
    """The decoder's fields beside the others, its rope in two fields, fewer vision fields."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text, vision = config.pop("text_config"), config["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    text["rope_scaling"] = {**rope, "type": "mrope" if kind == "default" else kind}
    for absent in ("model_type", "layer_types"):
        del text[absent]
    for absent in ("model_type", "hidden_act", "in_channels", "initializer_range"):
        del vision[absent]
    del vision["rope_parameters"]
    vision |= {"in_chans": 3, "spatial_patch_size": vision["patch_size"]}
    text |= {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 2}
    file.write_text(json.dumps({**config, **text}))

    file = folder / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    size = saved.pop("size")
    saved |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    file.write_text(json.dumps(saved))
