"""A tiny random Qwen3-VL of transformers, with experts or without, written as each tool does."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
)

from support import published_qwen_templates as published
from support.experts import ChoosesExperts
from support.qwen2_vl_reference import DYNAMIC, REFUSED, Qwen2VLReference
from support.sizes import TEXT
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import Conversation
from vision_add_ons.testing.quantization import QuantizedReference, round_array, round_weights
from vision_add_ons.testing.torch_weights import set_values

SECTIONS = [6, 3, 3]
ROPE = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": SECTIONS,
    "mrope_interleaved": True,
}


class WithoutVideos(Qwen3VLProcessor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let there be no video processor: it needs torchvision."""


class Qwen3VLReference(Qwen2VLReference):
    name = "qwen3_vl"
    dialects = ("transformers 5", "transformers 4", "mlx-vlm")
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *(case for case in REFUSED if case[1] not in ("qwen3_vl_vision", DYNAMIC)),
        ("vision_config.model_type", "qwen2_vl", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "gelu_new", UnsupportedCheckpoint),
        ("vision_config.out_hidden_size", 32, BrokenConfig),
        ("vision_config.intermediate_size", 0, BrokenConfig),
        ("vision_config.num_position_embeddings", 0, BrokenConfig),
        ("vision_config.deepstack_visual_indexes", [1, 0], BrokenConfig),
        ("vision_config.deepstack_visual_indexes", [0, 4], BrokenConfig),
        ("vision_config.deepstack_visual_indexes", [-1, 0], BrokenConfig),
        ("vision_config.deepstack_visual_indexes", [0, 1, 2, 3], BrokenConfig),
        ("text_config.rope_parameters.mrope_interleaved", False, UnsupportedCheckpoint),
        (
            "text_config.rope_parameters",
            {**DYNAMIC, "mrope_section": SECTIONS},
            UnsupportedCheckpoint,
            "rope_type",
        ),
    )
    templates: ClassVar = {"Instruct": published.QWEN3, "Thinking": published.QWEN3_THINKING}
    config_class = Qwen3VLConfig
    model_class = Qwen3VLForConditionalGeneration
    processor_class = WithoutVideos
    processing: ClassVar = {
        "min_pixels": 512,
        "max_pixels": 4096,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    text: ClassVar = {**TEXT, "head_dim": 24, "rope_parameters": ROPE}
    vision: ClassVar = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2],
    }

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if dialect == "transformers 5":
            return
        _write_as_published(folder)
        tied = self.model.config.tie_word_embeddings
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            if tied and name == "lm_head.weight":
                continue
            made = self.converted if dialect == "mlx-vlm" else self.published
            tensors |= made(name, tensor)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def published(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A tensor as its makers have it: the experts' matrices turned."""
        turned = tensor.ndim == 3 and ".experts." in name
        return {name: tensor.transpose(1, 2).contiguous() if turned else tensor}

    def converted(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A tensor as mlx-vlm has it: the experts' matrices apart."""
        if name.startswith("model.visual."):
            name = name.replace("model.visual.", "vision_tower.")
            if name.endswith("patch_embed.proj.weight"):
                tensor = tensor.permute(0, 2, 3, 4, 1).contiguous()
            return {name: tensor}
        name = name.replace("model.language_model.", "language_model.model.")
        name = name.replace("lm_head.", "language_model.lm_head.")
        stem, _, last = name.rpartition(".experts.")
        if not stem:
            return {name: tensor}
        if last == "down_proj":
            return {f"{stem}.switch_mlp.down_proj.weight": tensor}
        gate, up = (half.contiguous() for half in tensor.chunk(2, dim=1))
        return {
            f"{stem}.switch_mlp.gate_proj.weight": gate,
            f"{stem}.switch_mlp.up_proj.weight": up,
        }

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(**self._pixels([image]))
        deep = [parts[0] for parts in features.deepstack_features]
        return torch.cat([features.pooler_output[0], *deep], dim=1).numpy()

    def conversations(self) -> list[Conversation]:
        standing = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        return [
            Conversation(one.messages, one.text.removeprefix(standing))
            for one in super().conversations()
        ]


class Qwen3VLMoeReference(ChoosesExperts, Qwen3VLReference):
    name = "qwen3_vl_moe"
    config_class = Qwen3VLMoeConfig
    model_class = Qwen3VLMoeForConditionalGeneration
    text: ClassVar = {
        **Qwen3VLReference.text,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
    }

    def quantized(self, seed: int, towers: bool) -> QuantizedReference:
        """With the experts, whose weights are no layers' in torch."""
        other = type(self)(seed)
        kept = round_weights(other.model, towers)
        for name, parameter in other.model.named_parameters():
            if ".experts." in name:
                halves = 2 if "gate_up" in name else 1
                parts = np.split(parameter.detach().numpy(), halves, axis=1)
                rounded = [round_array(np.ascontiguousarray(part), kept) for part in parts]
                set_values(parameter, np.concatenate(rounded, axis=1))
        return QuantizedReference(other, kept)


def _write_as_published(folder: Path) -> None:
    """The rope in two fields, the tower by the whole model's type, no fields with defaults."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    text["tie_word_embeddings"] = config["tie_word_embeddings"]
    vision["model_type"] = config["model_type"]
    del vision["rope_parameters"]
    if "num_local_experts" in text:
        text |= {"num_experts": text.pop("num_local_experts"), "norm_topk_prob": True}
    file.write_text(json.dumps(config))
