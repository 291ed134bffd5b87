"""Tiny random InternVL models of transformers, with the decoders that are published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from support import published_templates as published
from support import sizes
from support.experts import ChoosesExperts
from support.pictures import photographs
from support.processors import Built
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import REMOVED, Conversation, Reference, random_weights

START, END, IMAGE, VIDEO = 80, 81, 82, 83
SIDE, PATCH, ROWS = 16, 4, 4
Fields = Mapping[str, Any]
NONE: Fields = {}

TEXT: dict[str, Any] = {
    **sizes.TEXT,
    "model_type": "qwen2",
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 2e3},
}
"""As published, with a rope that differs from the plain one beyond the context alone."""
PLAIN = {"rope_type": "default", "rope_theta": 2e3}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": [SIDE, SIDE],
    "patch_size": [PATCH, PATCH],
    "attention_bias": True,
}


class WithoutVideos(InternVLProcessor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let there be no video processor: it needs torchvision."""


class InternVLReference(Reference):
    name = "internvl"
    dialects = ("transformers 5", "as published", "state dict", "mlx-vlm")
    """The third with the names that transformers 5 has in memory."""
    image_token = IMAGE
    sizes = ((40, 30), (14, 25))
    more_sizes = ((64, 64), (9, 47), (61, 8), (15, 17))
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        ("vision_config.model_type", "siglip_vision_model", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "quick_gelu", UnsupportedCheckpoint),
        ("vision_config.norm_type", "batch_norm", UnsupportedCheckpoint),
        ("vision_config.num_channels", 1, UnsupportedCheckpoint),
        ("vision_config.use_mean_pooling", False, UnsupportedCheckpoint),
        ("vision_config.use_absolute_position_embeddings", False, UnsupportedCheckpoint),
        ("vision_config.use_mask_token", True, UnsupportedCheckpoint),
        ("vision_config.image_size", [16, 32], UnsupportedCheckpoint),
        ("vision_config.image_size", 0, BrokenConfig),
        ("vision_config.patch_size", [4, 8], UnsupportedCheckpoint),
        ("vision_config.patch_size", 3, BrokenConfig),
        ("vision_config.patch_size", [], UnsupportedCheckpoint),
        ("vision_config.num_attention_heads", 3, BrokenConfig),
        ("vision_config.num_hidden_layers", 0, BrokenConfig),
        ("downsample_ratio", 0.3, UnsupportedCheckpoint),
        ("vision_config.patch_size", 16, BrokenConfig, "downsample_ratio"),
        ("projector_hidden_act", "relu", UnsupportedCheckpoint),
        ("vision_feature_select_strategy", "full", UnsupportedCheckpoint),
        ("vision_feature_layer", 3, BrokenConfig),
        ("vision_feature_layer", [-1], UnsupportedCheckpoint),
        ("image_token_id", START, BrokenConfig, f"image_token_id is {START}, .* {IMAGE}"),
        ("text_config.model_type", "gemma", UnsupportedCheckpoint),
        ("quantization_config", {"quant_method": "fp8"}, UnsupportedCheckpoint),
        ("processor_config.json/image_seq_length", 256, UnsupportedCheckpoint),
        ("processor_config.json/image_seq_length", REMOVED, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"height": 32, "width": 32}, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_resize", False, UnsupportedCheckpoint),
        ("preprocessor_config.json/min_patches", 0, BrokenConfig),
        ("preprocessor_config.json/max_patches", "12", BrokenConfig),
        ("preprocessor_config.json/max_patches", 10**6, BrokenConfig),
    )
    processors = (
        {},
        {"max_patches": 1},
        {"min_patches": 3, "max_patches": 7, "crop_to_patches": False},
        {"min_patches": 5, "max_patches": 4, "image_mean": [0.1, 0.2, 0.3]},
        {"max_patches": 40},
    )
    pixel_sizes = ((1, 1), (1, 50), (190, 1), (3, 570), (16, 16), (1300, 900), (33, 47), (23, 11))
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "start_image_token": (START, "<img>"),
        "end_image_token": (END, "</img>"),
        "context_image_token": (IMAGE, "<IMG_CONTEXT>"),
        "video_token": (VIDEO, "<video>"),
    }
    control_tokens: ClassVar[tuple[str, ...]] = ("<|im_start|>", "<|im_end|>")
    templates: ClassVar[dict[str, str]] = {"as published": published.INTERNVL}
    texts = (
        ("Say what <IMG_CONTEXT>\nis, and  <IMG_CONTEXT><IMG_CONTEXT>!", 3),
        ("Nothing to see\n\n\nhere", 0),
    )
    text: ClassVar[dict[str, Any]] = TEXT

    def __init__(self, seed: int, vision: Fields = NONE, **changes: Any) -> None:
        config = InternVLConfig(
            text_config=self.text,
            vision_config={**VISION, **vision},
            image_token_id=IMAGE,
            attn_implementation="eager",
            **{"tie_word_embeddings": False, **changes},
        )
        self.model = random_weights(InternVLForConditionalGeneration(config), seed)
        self.merged = round(1 / config.downsample_ratio)
        self.processor = GotOcr2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, crop_to_patches=False
        )

    @property
    def tile_rows(self) -> int:
        vision = self.model.config.vision_config
        return (SIDE // vision.patch_size[0] // self.merged) ** 2

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        settings = {"image_seq_length": self.tile_rows, "processor_class": "InternVLProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(settings))
        if dialect == "transformers 5":
            return
        file = folder / "model.safetensors"
        if dialect == "state dict":
            state = {name: t.contiguous() for name, t in self.model.state_dict().items()}
            save_file(state, file, metadata={"format": "pt"})
            return
        write_as_published(folder)
        if dialect == "mlx-vlm":
            tensors = load_file(file)
            name = "vision_tower.embeddings.patch_embeddings.projection.weight"
            tensors[name] = tensors[name].permute(0, 2, 3, 1).contiguous()
            save_file(tensors, file, metadata={"format": "mlx"})

    def block(self, image: Image.Image) -> list[int]:
        return [START, *[IMAGE] * (self.tile_rows * len(self._tiles([image]))), END]

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(self._tiles([image]))
        return features.pooler_output.flatten(0, 1).numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra = {"pixel_values": self._tiles(images)} if images else {}
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([tokens + answer]), **extra).logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        theirs = GotOcr2ImageProcessorPil(**settings)
        # InternVLProcessor asks so, whatever is saved.
        made = theirs([image], crop_to_patches=True, return_tensors="np")
        return made["pixel_values"].transpose(0, 2, 3, 1)

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        return np.array(add_on.tiles.pixels.normalised(add_on.tiles.cut(image)))

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", (30 + 9 * i, 40)) for i in range(3)]
        mark = "<IMG_CONTEXT>\n"
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief."},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "\nAnd these?", "images": pictures[1:count]},
                ],
                "<|im_start|>system\nBe  brief.<|im_end|>\n"
                f"<|im_start|>user\n{mark}What  is\n\nthis?<|im_end|>\n"
                "<|im_start|>assistant\nA square.<|im_end|>\n"
                f"<|im_start|>user\n{mark * (count - 1)}\nAnd these?<|im_end|>\n"
                "<|im_start|>assistant\n",
            )
            for count in (1, 2, 3)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = WithoutVideos(self.processor, tokenizer, image_seq_length=self.tile_rows)
        return list(whole(images=images or None, text=text)["input_ids"][0])

    def own_processor(self, folder: Path) -> Any:
        return Built(WithoutVideos, self.processor, folder, image_seq_length=self.tile_rows)

    def _tiles(self, images: list[Image.Image]) -> torch.Tensor:
        made = self.processor(images, crop_to_patches=True, return_tensors="pt")
        return made["pixel_values"]


def write_as_published(folder: Path) -> None:
    """The rope in two fields, ties where transformers 4 had them, and no defaults of its own."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = None
    if rope["rope_type"] != "default":
        text["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    for absent in ("layer_types", "tie_word_embeddings", "pad_token_id"):
        text.pop(absent, None)
    config |= {"image_seq_length": 256, "torch_dtype": "float32", "transformers_version": "4.52.0"}
    del config["tie_word_embeddings"], config["dtype"]
    text |= {"architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16"}
    vision |= {"architectures": ["InternVisionModel"], "dropout": 0.0, "torch_dtype": "bfloat16"}
    vision |= {"initializer_factor": 0.1, "initializer_range": 1e-10}
    file.write_text(json.dumps(config))


class Qwen3Reference(InternVLReference):
    """As InternVL 3.5, with the larger tower's choices."""

    name = "internvl (qwen3)"
    text: ClassVar[dict[str, Any]] = {**TEXT, "model_type": "qwen3", "rope_parameters": PLAIN}
    larger: ClassVar[Fields] = {
        "norm_type": "rms_norm",
        "use_qk_norm": True,
        "attention_bias": False,
    }

    def __init__(self, seed: int, vision: Fields = NONE, **changes: Any) -> None:
        super().__init__(seed, {**self.larger, **vision}, **changes)


class LlamaReference(InternVLReference):
    """As InternVL 2.5 and InternVL 3 9B."""

    name = "internvl (llama)"
    text: ClassVar[dict[str, Any]] = {**TEXT, "model_type": "llama"}


class Qwen3MoeReference(ChoosesExperts, InternVLReference):
    """As the larger InternVL 3.5."""

    name = "internvl (qwen3_moe)"
    dialects = ("transformers 5", "as published", "mlx-vlm")
    text: ClassVar[dict[str, Any]] = {
        **TEXT,
        "model_type": "qwen3_moe",
        "rope_parameters": PLAIN,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    }
