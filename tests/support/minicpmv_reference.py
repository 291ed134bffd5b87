"""Tiny random MiniCPM-V 4.6 and 4.7 of transformers, written as each tool writes them."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6Processor,
    MiniCPMV4_7Config,
    MiniCPMV4_7ForConditionalGeneration,
    MiniCPMV4_7Processor,
)
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)

from support import published_qwen_templates as published
from support.pictures import photographs
from support.processors import Built
from support.qwen3_5_reference import NORMS, Qwen35Reference, with_lasting_states
from vision_add_ons.testing import LINE_BREAKS, Conversation, Reference, random_weights
from vision_add_ons.testing.reference import Part
from vision_add_ons.testing.vocabulary import UNK

IMAGE, VIDEO, START, END, SLICE_START, SLICE_END, ID_START, ID_END = range(80, 88)
NEWLINE = LINE_BREAKS["\n"]
PATCH = 4

TEXT: dict[str, Any] = {
    **Qwen35Reference.text,
    "model_type": "qwen3_5_text",
    "head_dim": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
"""Nothing is told of the axes that its channels follow, as in what is published."""
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": 24,
}
SLICING = {"patch_size": PATCH, "scale_resolution": 32, "max_slice_nums": 5}


class _WithoutVideos:
    def __init__(self, images: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        """With something in the place of a video processor: that needs torchvision."""
        videos = SimpleNamespace(slice_mode=True, downsample_mode="16x")
        super().__init__(images, videos, tokenizer, chat_template)  # type: ignore[call-arg]

    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let it."""


class WithoutVideos46(_WithoutVideos, MiniCPMV4_6Processor):
    pass


class WithoutVideos47(_WithoutVideos, MiniCPMV4_7Processor):
    pass


class MiniCPMV46Reference(Reference):
    name = "minicpmv4_6"
    dialects = ("transformers 5", "as published", "mlx-vlm")
    image_token = IMAGE
    sizes = ((64, 60), (20, 30))
    """Four slices and the whole, and the whole alone."""
    more_sizes = ((40, 30), (9, 47), (61, 8), (150, 20))
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "image_token": (IMAGE, "<|image_pad|>"),
        "video_token": (VIDEO, "<|video_pad|>"),
        "image_start_token": (START, "<image>"),
        "image_end_token": (END, "</image>"),
        "slice_start_token": (SLICE_START, "<slice>"),
        "slice_end_token": (SLICE_END, "</slice>"),
        "image_id_start_token": (ID_START, "<image_id>"),
        "image_id_end_token": (ID_END, "</image_id>"),
    }
    config_class: ClassVar[Any] = MiniCPMV4_6Config
    model_class: ClassVar[Any] = MiniCPMV4_6ForConditionalGeneration
    processor_class: ClassVar[Any] = WithoutVideos46
    own_fields: ClassVar[dict[str, Any]] = {}

    def __init__(self, seed: int, processing: Mapping[str, Any] | None = None, **changes: Any):
        fields = {"insert_layer_id": 1, "tie_word_embeddings": False, **self.own_fields, **changes}
        config = self.config_class(
            text_config={**TEXT, "tie_word_embeddings": fields["tie_word_embeddings"]},
            vision_config=VISION,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            attn_implementation="eager",
            **fields,
        )
        self.model = with_lasting_states(random_weights(self.model_class(config), seed))
        self.processor = MiniCPMV4_6ImageProcessorPil(**{**SLICING, **(processing or {})})

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def block(self, image: Image.Image) -> list[int]:
        made = self._processed([image])
        mode = self.processor.downsample_mode
        whole, *slices = (int(n) // (4 if mode == "4x" else 16) for n in made["target_sizes"].prod(-1))
        lines, columns = made["grids"][0]
        block = [START, *[IMAGE] * whole, END]
        for i, rows in enumerate(slices):
            block += [NEWLINE] if i and i % columns == 0 else []
            block += [SLICE_START, *[IMAGE] * rows, SLICE_END]
        assert len(slices) == lines * columns
        return block

    def expanded(self, prompt: Sequence[Part]) -> tuple[list[int], list[Image.Image]]:
        """With a number before each picture, which the tiny tokenizer does not know."""
        tokens: list[int] = []
        images = [part for part in prompt if not isinstance(part, int)]
        for part in prompt:
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += [ID_START, UNK, ID_END, *self.block(part)]
        return tokens, images

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(**self._pixels([image]))
        return torch.cat(features.pooler_output).numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        """In float64, as `Qwen35Reference`."""
        ids = torch.tensor([tokens + answer])
        extra = self.inputs(ids, images) if images else {}
        self.model.double()
        try:
            with torch.no_grad():
                return self.model(input_ids=ids, **extra).logits[0].numpy()
        finally:
            self.model.float()

    def inputs(self, ids: torch.Tensor, images: list[Image.Image]) -> dict[str, Any]:
        return self._pixels(images)

    def _pixels(self, images: list[Image.Image]) -> dict[str, Any]:
        made = self._processed(images)
        return {name: made[name] for name in ("pixel_values", "target_sizes")}

    def _processed(self, images: list[Image.Image]) -> Any:
        return self.processor(images, return_tensors="pt")


class MiniCPMV47Reference(MiniCPMV46Reference):
    name = "minicpmv4_7"
    config_class = MiniCPMV4_7Config
    model_class = MiniCPMV4_7ForConditionalGeneration
    processor_class = WithoutVideos47
    own_fields: ClassVar[dict[str, Any]] = {
        "image_start_id": START,
        "image_end_id": END,
        "slice_start_id": SLICE_START,
        "slice_end_id": SLICE_END,
        "newline_id": NEWLINE,
    }

    def inputs(self, ids: torch.Tensor, images: list[Image.Image]) -> dict[str, Any]:
        return {**super().inputs(ids, images), "mm_token_type_ids": (ids == IMAGE).int()}
