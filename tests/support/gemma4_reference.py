"""Tiny random models of Gemma 4 of transformers, written as each tool writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
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

from support.gemma4_templates import GEMMA4, GEMMA4_WITHOUT_THOUGHT
from support.pictures import photographs
from support.processors import Built
from support.published_templates import with_first_part
from support.sizes import TEXT as USUAL
from support.torchvision_processors import image_processor
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.gemma4.preprocessing import patch_places
from vision_add_ons.testing import VOCAB, Conversation, Reference, random_weights

BEGIN, IMAGE, END, VIDEO, AUDIO, BEGIN_AUDIO, END_AUDIO = range(80, 87)
PATCH, POOL = 2, 2
FULL, SLIDING = "full_attention", "sliding_attention"
Fields = Mapping[str, Any]
NONE: Fields = {}

ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e5},
    SLIDING: {"rope_type": "default", "rope_theta": 1e3},
}
TEXT: dict[str, Any] = {
    **USUAL,
    "num_hidden_layers": 5,
    "layer_types": [FULL, SLIDING, FULL, SLIDING, FULL],
    "global_head_dim": 32,
    "max_position_embeddings": 1024,
    "sliding_window": 24,
    "use_bidirectional_attention": "vision",
    "final_logit_softcapping": 30.0,
    "rope_parameters": ROPES,
}
PER_LAYER = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCAB}
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
SETTINGS = "preprocessor_config.json"
# Beside what is read, as published files have it.
LEFT = {
    "eos_token_id": [2, 5],
    "initializer_range": 0.02,
    "vision_soft_tokens_per_image": 70,
    "text_config": {"attention_dropout": 0.0, "use_cache": True, "initializer_range": 0.02},
    "vision_config": {"global_head_dim": 16, "default_output_length": 70, "_name_or_path": ""},
}

REFUSED: tuple[tuple[Any, ...], ...] = (
    ("text_config", None, UnsupportedCheckpoint),
    ("text_config.model_type", "gemma3_text", UnsupportedCheckpoint),
    ("text_config.use_bidirectional_attention", "all", UnsupportedCheckpoint),
    ("text_config.pad_token_id", None, BrokenConfig),
    ("vision_config", None, UnsupportedCheckpoint),
    ("vision_config.model_type", "siglip_vision_model", UnsupportedCheckpoint),
    ("vision_config.patch_size", 0, BrokenConfig),
    ("vision_config.patch_size", 4, UnsupportedCheckpoint),
    ("vision_config.pooling_kernel_size", 3, UnsupportedCheckpoint),
    ("image_token_id", VIDEO, BrokenConfig),
    (f"{SETTINGS}/max_soft_tokens", 64, UnsupportedCheckpoint),
    (f"{SETTINGS}/max_soft_tokens", 140, UnsupportedCheckpoint, "pos"),
    (f"{SETTINGS}/patch_size", 16, UnsupportedCheckpoint),
    (f"{SETTINGS}/do_resize", False, UnsupportedCheckpoint),
    (f"{SETTINGS}/do_rescale", False, UnsupportedCheckpoint),
    (f"{SETTINGS}/do_normalize", "yes", UnsupportedCheckpoint),
    (f"{SETTINGS}/resample", "cubic", BrokenConfig),
)


class PicturesAlone:
    """Mixed into a processor: its parts for videos and sounds, which want torchvision, are None."""

    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let them be."""


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
            value.data *= 0.3
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
    dialects = ("transformers 5", "as published", "mlx-vlm")
    image_token = IMAGE
    more_sizes = ((64, 64), (9, 47), (61, 8))
    unused = (r"model\.audio_tower\.", r"model\.embed_audio\.")
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *REFUSED,
        ("text_config.hidden_activation", "silu", UnsupportedCheckpoint),
        ("vision_config.hidden_activation", "gelu", UnsupportedCheckpoint),
        ("vision_config.attention_bias", True, UnsupportedCheckpoint),
        ("vision_config.num_key_value_heads", 1, UnsupportedCheckpoint),
        ("vision_config.head_dim", 8, UnsupportedCheckpoint),
        ("vision_config.num_hidden_layers", 0, BrokenConfig),
        ("vision_config.position_embedding_size", 139, UnsupportedCheckpoint),
    )
    means: ClassVar[dict[str, Any]] = {"rescale_factor": 0.005}  # means count if they are used
    ignored = ("vision_config._name_or_path", "vision_config.hidden_act")
    processors: ClassVar[tuple[Fields, ...]] = (
        {},
        {"resample": 2, "rescale_factor": 0.01},
        {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0]},
        {"do_normalize": True},
    )
    pixel_sizes = ((1, 50), (60, 1), (1, 1), (3, 200), (31, 33), (1300, 900), (54, 42))
    control_tokens = ("<|turn>", "<turn|>", "<|channel>", "<channel|>")
    templates: ClassVar[dict[str, str]] = {
        "of small ones": GEMMA4,
        "of large ones": GEMMA4_WITHOUT_THOUGHT,
    }
    texts = (
        ("<s><|turn>user\nLook: <|image|>\nNow say what it is,<|image|>!<turn|>\n", 2),
        ("Nothing\n\n\nhere", 0),
    )
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
        else:
            for name in ("audio_tower.layers.0.norm.weight", "embed_audio.projection.weight"):
                tensors[f"model.{name}"] = torch.ones(4)
            _write_as_published(folder)
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

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        made = self.image_processor(**settings)([image], return_tensors="np")
        real = made["image_position_ids"][0, :, 0] >= 0
        return made["pixel_values"][0][real]

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        squares = add_on.squares
        patches = squares.patches(squares.cut(image))
        values = np.array(squares.pixels.normalised(patches)).reshape(len(patches), -1)
        places = patch_places(squares.grid(image.size), squares.pool)
        return values[np.lexsort(places.T)]  # line by line

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", size) for size in ((40, 30), (8, 8), (90, 20))]
        mark = "\n\n<|image|>\n\n"
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief.\n"},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "\nAnd these?", "images": pictures[1:count]},
                ],
                "<s><|turn>system\nBe  brief.<turn|>\n"
                f"<|turn>user\n{mark}What  is\n\nthis?<turn|>\n"
                "<|turn>model\nA square.<turn|>\n"
                f"<|turn>user\n{mark * (count - 1)}And these?<turn|>\n<|turn>model\n",
            )
            for count in (1, 2, 3)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = self._whole(self.processor, tokenizer)
        made = whole(images=images or None, text=text, add_special_tokens=False)
        return [int(token) for token in made["input_ids"][0]]

    def own_processor(self, folder: Path) -> Any:
        return Built(self._whole, self.processor, folder)

    @classmethod
    def _whole(cls, images: Any, tokenizer: Any, **settings: Any) -> Any:
        return cls.processor_class(None, images, tokenizer, None, **settings)

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return with_first_part(message, "system")

    def misshapen(self, tensor: str, array: mx.array) -> mx.array:
        return super().misshapen(tensor, array) if array.ndim else mx.zeros(2, array.dtype)

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

    refused = (
        ("text_config.model_type", "gemma4_text", UnsupportedCheckpoint),
        ("vision_config.model_type", "gemma4_vision", UnsupportedCheckpoint),
        ("vision_config.mm_embed_dim", 0, BrokenConfig),
        ("vision_config.mm_posemb_size", 60, UnsupportedCheckpoint),
        ("vision_config.output_proj_dims", 32, UnsupportedCheckpoint),
        (f"{SETTINGS}/resample", 1, UnsupportedCheckpoint),
    )

    @staticmethod
    def image_processor(**settings: Any) -> Any:
        return image_processor("gemma4_unified", "Gemma4UnifiedImageProcessor")(**settings)

    def pictures(self) -> list[Image.Image]:
        return []

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        squares = add_on.squares.cut(image)
        return np.array(add_on.squares.pixels.normalised(squares)).reshape(len(squares), -1)


def _write_as_published(folder: Path) -> None:
    """Settings and config as they are published, with fields that transformers 5 writes no more."""
    file = folder / "preprocessor_config.json"
    nested = {"image_processor": json.loads(file.read_text()), "image_seq_length": 70}
    file.unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    own = text.pop("per_layer_config")["2"]
    text["global_head_dim"] = own["head_dim"]
    text["num_global_key_value_heads"] = own.get("num_key_value_heads")
    if "rope_parameters" in vision:
        vision["rope_parameters"]["rope_type"] = "default"
    for name, value in LEFT.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


def _converted(name: str) -> str:
    """mlx-vlm's name of a tensor."""
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    return name.removeprefix("model.")
