"""A tiny random GLM-4V of transformers, written as each tool writes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from support.glm_templates import GLM41V, GLM46V, as_glm_reads
from support.qwen2_vl_reference import (
    END,
    IMAGE,
    MERGE,
    PATCH,
    REFUSED,
    START,
    VIDEO,
    Qwen2VLReference,
)
from support.qwen3_vl_reference import Qwen3VLMoeReference
from support.sizes import TEXT
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import REMOVED, Conversation, random_weights

VIDEO_START, VIDEO_END = 84, 85
SECTIONS = [2, 1, 1]
ROPE = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": SECTIONS,
    "partial_rotary_factor": 0.5,
}
LINEAR = {**ROPE, "rope_type": "linear", "factor": 2.0}
DYNAMIC = {**ROPE, "rope_type": "dynamic", "factor": 2.0}
WIDE_HEADS = {**TEXT, "head_dim": 32, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}
PIXELS = {"shortest_edge": 1024, "longest_edge": 8192}
SIZE = "preprocessor_config.json/size"
LIMITS = (
    ("shortest_edge", -1),
    ("shortest_edge", 9000),
    ("longest_edge", 10**12),
    ("longest_edge", "many"),
)
ELSEWHERE = (
    "vision_config.model_type",
    "text_config.rope_parameters",
    "preprocessor_config.json/min_pixels",
    "preprocessor_config.json/max_pixels",
)


class WithoutVideos(Glm4vProcessor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let there be no video processor: it needs torchvision."""


class Glm4vReference(Qwen2VLReference):
    name = "glm4v"
    dialects = ("transformers 5", "transformers 4", "mlx-vlm")
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *(c for c in REFUSED if c[0] not in ELSEWHERE),
        ("vision_config.model_type", "qwen2_vl", UnsupportedCheckpoint),
        ("vision_config.out_hidden_size", 32, BrokenConfig),
        ("vision_config.intermediate_size", 0, BrokenConfig),
        ("vision_config.image_size", 3, BrokenConfig),
        ("vision_config.image_size", [24, 24], BrokenConfig),
        ("text_config", REMOVED, UnsupportedCheckpoint),
        ("text_config.model_type", "glm4v_moe_text", UnsupportedCheckpoint),
        ("text_config", WIDE_HEADS, UnsupportedCheckpoint, "head_dim"),
        ("text_config.rope_parameters", DYNAMIC, UnsupportedCheckpoint, "rope_type"),
        ("text_config.rope_parameters", LINEAR, UnsupportedCheckpoint, "rope_scaling"),
        ("text_config.rope_parameters.partial_rotary_factor", 1.0, BrokenConfig, "mrope_section"),
        ("text_config.rope_parameters.partial_rotary_factor", 0.45, BrokenConfig),
        ("text_config.rope_parameters.partial_rotary_factor", 0, BrokenConfig),
        ("text_config.rope_parameters.partial_rotary_factor", "half", BrokenConfig),
        *((f"{SIZE}.{edge}", value, BrokenConfig, "_pixels") for edge, value in LIMITS),
    )
    processors = ({}, {"size": {"shortest_edge": 40_000, "longest_edge": 2_007_040}})
    special_tokens: ClassVar = {
        "image_token": (IMAGE, "<|image|>"),
        "video_token": (VIDEO, "<|video|>"),
        "image_start_token": (START, "<|begin_of_image|>"),
        "image_end_token": (END, "<|end_of_image|>"),
        "video_start_token": (VIDEO_START, "<|begin_of_video|>"),
        "video_end_token": (VIDEO_END, "<|end_of_video|>"),
    }
    control_tokens = (
        "[gMASK]",
        "<sop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
        "<think>",
        "</think>",
    )
    templates: ClassVar = {"4.1V": GLM41V, "4.6V": GLM46V}
    texts = (
        ("Say what <|image|> is, and <|begin_of_image|><|image|><|end_of_image|>!", 2),
        ("Nothing to see\n\n\nhere", 0),
    )
    config_class = Glm4vConfig
    model_class = Glm4vForConditionalGeneration
    processor_class = WithoutVideos
    text: ClassVar = {**TEXT, "rope_parameters": ROPE}
    vision: ClassVar = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "image_size": 6 * PATCH,
    }

    def __init__(self, seed: int, **text: Any) -> None:
        config = self.config_class(
            text_config={**self.text, **text},
            vision_config={**self.vision, "patch_size": PATCH, "spatial_merge_size": MERGE},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
            video_start_token_id=VIDEO_START,
            video_end_token_id=VIDEO_END,
            attn_implementation="eager",
        )
        self.model = random_weights(self.model_class(config), seed)
        self.processor = Glm4vImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=PIXELS)

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if dialect == "transformers 5":
            return
        _write_as_published(folder)
        if dialect == "mlx-vlm":
            file = folder / "model.safetensors"
            tensors = dict(_converted(*named) for named in load_file(file).items())
            save_file(_stacked(tensors), file, metadata={"format": "pt"})

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        theirs = Glm4vImageProcessorPil(**settings)
        made = theirs([image], input_data_format="channels_last", return_tensors="np")
        return made["pixel_values"]

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return as_glm_reads(template, message)

    def conversations(self) -> list[Conversation]:
        return [Conversation(c.messages, _turned(c.text)) for c in super().conversations()]


class Glm4vMoeReference(Glm4vReference):
    name = "glm4v_moe"
    refused = (
        *(
            c
            for c in Glm4vReference.refused
            if c[1] is not WIDE_HEADS and "text_config." not in c[0]
        ),
        ("text_config.model_type", "glm4v_text", UnsupportedCheckpoint),
        ("text_config.rope_parameters.partial_rotary_factor", 1.0, BrokenConfig, "mrope_section"),
        ("text_config.n_group", 2, UnsupportedCheckpoint),
        ("text_config.num_experts_per_tok", 1, UnsupportedCheckpoint),
    )
    config_class = Glm4vMoeConfig
    model_class = Glm4vMoeForConditionalGeneration
    text: ClassVar = {
        **Glm4vReference.text,
        "head_dim": 32,
        "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2]},
        "attention_bias": True,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
    }

    def __init__(self, seed: int, **text: Any) -> None:
        super().__init__(seed, **text)
        drawn = np.random.default_rng(seed)
        for name, buffer in self.model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.tensor(drawn.normal(0, 0.3, len(buffer))))

    quantized = Qwen3VLMoeReference.quantized


def _turned(text: str) -> str:
    """A conversation that Qwen2-VL's template makes, as GLM-4V's does."""
    standing = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    text = text.removeprefix(standing).replace("<|im_end|>\n", "")
    for role in ("system", "user", "assistant"):
        text = text.replace(f"<|im_start|>{role}\n", f"<|{role}|>\n")
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    return "[gMASK]<sop>" + text.replace(mark, "<|begin_of_image|><|image|><|end_of_image|>")


def _converted(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A tensor as mlx-vlm has it."""
    if name.startswith("model.visual."):
        if name.endswith(("patch_embed.proj.weight", "downsample.weight")):
            tensor = tensor.movedim(1, -1).contiguous()
        return name.replace("model.visual.", "vision_tower."), tensor
    name = name.replace("model.language_model.", "language_model.model.")
    return name.replace("lm_head.", "language_model.lm_head."), tensor


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts' matrices in one tensor each."""
    found: dict[str, list[torch.Tensor]] = {}
    result = {}
    for name, tensor in sorted(tensors.items()):
        stem, numbered, rest = name.partition(".experts.")
        if numbered:
            whole = f"{stem}.switch_mlp.{rest.partition('.')[2]}"
            found.setdefault(whole, []).append(tensor)
        else:
            result[name] = tensor
    return result | {name: torch.stack(parts) for name, parts in found.items()}


def _write_as_published(folder: Path) -> None:
    """The rope in three fields of the text, and none for the tower."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    text |= {"rope_scaling": rope, "attention_bias": True, "tie_word_embeddings": False}
    vision["model_type"] = config["model_type"]
    del vision["rope_parameters"]
    file.write_text(json.dumps(config))
