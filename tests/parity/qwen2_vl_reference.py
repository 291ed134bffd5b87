"""A tiny random Qwen2-VL of transformers, written as each tool writes it."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vision_add_ons.testing import BOS, EOS, PAD, VOCAB, Reference, random_weights

START, END, IMAGE, VIDEO = 80, 81, 82, 83
MERGE, PATCH = 2, 4
SECTIONS = [2, 3, 3]

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": SECTIONS},
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


class Qwen2VLReference(Reference):
    name = "qwen2_vl"
    dialects = ("transformers 5", "transformers 4", "module names", "mlx-vlm")
    image_token = IMAGE

    config_class: ClassVar[Any] = Qwen2VLConfig
    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration
    vision: ClassVar[dict[str, Any]] = {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "hidden_size": TEXT["hidden_size"],
    }

    def __init__(self, seed: int, tied: bool = False, **text: Any) -> None:
        config = self.config_class(
            text_config={**TEXT, **text},
            tie_word_embeddings=tied,
            vision_config={**self.vision, "patch_size": PATCH, "spatial_merge_size": MERGE},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
            attn_implementation="eager",
        )
        self.model = random_weights(self.model_class(config), seed)
        self.processor = Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=MERGE, min_pixels=512, max_pixels=4096
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
