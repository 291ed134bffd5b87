"""Tiny random models of Gemma 4 of transformers, written as each tool writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4Processor,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedProcessor,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from support.pictures import photographs
from support.processors import Built
from support.sizes import TEXT as USUAL
from support.torchvision_processors import image_processor
from vision_add_ons.errors import BrokenConfig, BrokenTokenizer, UnsupportedCheckpoint
from vision_add_ons.testing import PAD, VOCAB, Conversation, Reference, random_weights

BEGIN, IMAGE, END, VIDEO, AUDIO, BEGIN_AUDIO, END_AUDIO = range(80, 87)
PATCH, POOL = 2, 3
FULL, SLIDING = "full_attention", "sliding_attention"
Fields = Mapping[str, Any]
NONE: Fields = {}

ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e5},
    SLIDING: {"rope_type": "default", "rope_theta": 1e3},
}
TEXT: dict[str, Any] = {
    **USUAL,
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
    "global_head_dim": 32,
    "max_position_embeddings": 1024,
    "sliding_window": 24,
    "use_bidirectional_attention": "vision",
    "final_logit_softcapping": 30.0,
    "rope_parameters": ROPES,
}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
SHARING = {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
ALIKE = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": PATCH,
    "pooling_kernel_size": POOL,
    "position_embedding_size": 70 * POOL,
    "use_clipped_linears": True,
}
PROCESSOR = {"patch_size": PATCH, "pooling_kernel_size": POOL, "max_soft_tokens": 70}
SETTINGS = "processor_config.json/image_processor"


class PicturesAlone:
    """Mixed into a processor: without parts for videos and sounds, which want torchvision."""

    def __init__(self, images: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(None, images, tokenizer, None, **settings)  # type: ignore[call-arg]

    def check_argument_for_proper_class(self, *_: Any) -> None:
        """None stands for what is not there."""


class Processor(PicturesAlone, Gemma4Processor):
    pass


class UnifiedProcessor(PicturesAlone, Gemma4UnifiedProcessor):
    pass


def made_random(model: Any, seed: int) -> Any:
    """`random_weights`, with bounds that clip, and scores for which float32 is enough."""
    random_weights(model, seed)
    rng = np.random.default_rng(seed)
    for name, value in model.named_parameters():
        if name.endswith("q_norm.weight"):
            value.data *= 0.4
    for name, value in model.named_buffers():
        kind = name.rpartition(".")[2]
        drawn = torch.tensor(rng.uniform(0.8, 1.2, tuple(value.shape)), dtype=torch.float32)
        if kind in ("layer_scalar", "std_scale"):
            value.data.copy_(drawn)
        elif kind == "std_bias":
            value.data.copy_(drawn - 1)
        elif kind.endswith(("put_min", "put_max")):
            value.data.copy_(drawn * (1 if kind.endswith("max") else -1))
    return model


class Gemma4Reference(Reference):
    """As E2B and E4B, with rows that see each other as in the larger ones."""

    name = "gemma4"
    dialects = ("as published", "transformers 5", "mlx-vlm")
    image_token = IMAGE
    more_sizes = ((64, 64), (9, 47), (61, 8))
    unused = (r"model\.audio_tower\.", r"model\.embed_audio\.")
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "boi_token": (BEGIN, "<|image>"),
        "image_token": (IMAGE, "<|image|>"),
        "eoi_token": (END, "<image|>"),
        "video_token": (VIDEO, "<|video|>"),
        "audio_token": (AUDIO, "<|audio|>"),
        "boa_token": (BEGIN_AUDIO, "<|audio>"),
        "eoa_token": (END_AUDIO, "<audio|>"),
    }
    model_class: ClassVar[Any] = Gemma4ForConditionalGeneration
    config_class: ClassVar[Any] = Gemma4Config
    processor_class: ClassVar[Any] = Processor
    text: ClassVar[Fields] = {**PER_LAYER, **SHARING}
    vision: ClassVar[Fields] = VISION

    def __init__(self, seed: int, text: Fields = NONE, vision: Fields = NONE, **changes: Any):
        config = self.config_class(
            text_config={**TEXT, **self.text, **text},
            vision_config={**self.vision, **vision},
            audio_config=None,
            boi_token_id=BEGIN,
            image_token_id=IMAGE,
            eoi_token_id=END,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            boa_token_id=BEGIN_AUDIO,
            eoa_token_index=END_AUDIO,
            attn_implementation="eager",
            **changes,
        )
        self.model = made_random(self.model_class(config), seed)
        self.processor = self.image_processor(**PROCESSOR)

    @staticmethod
    def image_processor(**settings: Any) -> Any:
        return Gemma4ImageProcessorPil(**settings)

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        file = folder / "model.safetensors"
        if dialect == "transformers 5":
            return
        tensors = load_file(file)
        if dialect == "mlx-vlm":
            tensors = {_converted(name): t for name, t in tensors.items()}
        save_file(tensors, file, metadata={"format": "pt"})

    def block(self, image: Image.Image) -> list[int]:
        count = self.processor([image])["num_soft_tokens_per_image"][0]
        return [BEGIN, *[IMAGE] * int(count), END]

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            made = self.model.model.get_image_features(**self._processed([image]))
        return torch.cat(made.pooler_output).numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        ids = torch.tensor([tokens + answer])
        extra: dict[str, Any] = {}
        if images:
            extra = {**self._processed(images), "mm_token_type_ids": (ids == IMAGE).int()}
        with torch.no_grad():
            return self.model(input_ids=ids, **extra).logits[0].numpy()

    def _processed(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        made = self.processor(images, return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_position_ids")}


class Gemma4MoeReference(Gemma4Reference):
    """As 26B; without experts it would be 31B."""

    name = "gemma4 with experts"
    text: ClassVar = {"hidden_size_per_layer_input": 0, **ALIKE, **EXPERTS}
    vision: ClassVar = {**VISION, "use_clipped_linears": False, "standardize": True}


class Gemma4UnifiedReference(Gemma4Reference):
    """As 12B."""

    name = "gemma4_unified"
    model_class = Gemma4UnifiedForConditionalGeneration
    config_class = Gemma4UnifiedConfig
    processor_class = UnifiedProcessor
    text: ClassVar = ALIKE
    vision: ClassVar = {
        "patch_size": PATCH,
        "pooling_kernel_size": POOL,
        "mm_embed_dim": 40,
        "output_proj_dims": 40,
        "mm_posemb_size": 70,
        "rms_norm_eps": 1e-6,
    }

    @staticmethod
    def image_processor(**settings: Any) -> Any:
        return image_processor("gemma4_unified", "Gemma4UnifiedImageProcessor")(**settings)


def _converted(name: str) -> str:
    """mlx-vlm's name of a tensor."""
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    return name.removeprefix("model.")
