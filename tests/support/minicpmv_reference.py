"""Tiny random MiniCPM-V 4.6 and 4.7 of transformers, written as each tool writes them."""

import json
from collections.abc import Mapping
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
from support.qwen3_5_reference import (
    NORMS,
    Qwen35MoeReference,
    Qwen35Reference,
    with_lasting_states,
)
from vision_add_ons.errors import BrokenConfig, BrokenTokenizer, UnsupportedCheckpoint
from vision_add_ons.testing import LINE_BREAKS, Conversation, Reference, random_weights
from vision_add_ons.testing.reference import REMOVED
from vision_add_ons.testing.vocabulary import UNK

IMAGE, VIDEO, START, END, SLICE_START, SLICE_END, ID_START, ID_END = range(80, 88)
NEWLINE = LINE_BREAKS["\n"]
PATCH = 4
SETTINGS = "preprocessor_config.json"

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


Fields = Mapping[str, Any]
NONE: Fields = {}
EXPERTS = {
    "model_type": "qwen3_5_moe_text",
    **{name: Qwen35MoeReference.text[name] for name in Qwen35MoeReference.text if "exp" in name},
    "moe_intermediate_size": 96,
}


class WithoutVideos46(MiniCPMV4_6Processor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let there be no video processor: it needs torchvision."""


class WithoutVideos47(MiniCPMV4_7Processor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let there be none."""


class MiniCPMV46Reference(Reference):
    name = "minicpmv4_6"
    dialects = ("transformers 5", "as published", "mlx-vlm")
    image_token = IMAGE
    sizes = ((64, 60), (20, 30))
    """Four slices and the whole, and the whole alone."""
    more_sizes = ((40, 30), (9, 47), (61, 8), (150, 20))
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        ("vision_config.model_type", "siglip_vision_model", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "gelu", UnsupportedCheckpoint),
        ("vision_config.num_channels", 4, UnsupportedCheckpoint),
        ("vision_config.patch_size", 0, UnsupportedCheckpoint),
        ("vision_config.patch_size", [4, 4], UnsupportedCheckpoint),
        ("vision_config.patch_size", 8, UnsupportedCheckpoint),
        ("vision_config.image_size", 28, UnsupportedCheckpoint),
        ("vision_config.num_hidden_layers", 0, BrokenConfig),
        ("vision_config.num_attention_heads", 5, BrokenConfig),
        ("vision_config.intermediate_size", 0, BrokenConfig),
        ("vision_config.window_kernel_size", [4, 4], UnsupportedCheckpoint),
        ("vision_config.insert_layer_id", 0, UnsupportedCheckpoint),
        ("vision_config", ["siglip"], BrokenConfig),
        ("insert_layer_id", REMOVED, UnsupportedCheckpoint),
        ("merge_kernel_size", [1, 4], UnsupportedCheckpoint),
        ("merger_times", 2, UnsupportedCheckpoint),
        ("downsample_mode", "8x", UnsupportedCheckpoint),
        ("downsample_mode", "4x", UnsupportedCheckpoint),
        ("drop_vision_last_layer", True, UnsupportedCheckpoint),
        ("patch_size", 8, UnsupportedCheckpoint),
        ("image_token_id", VIDEO, BrokenConfig),
        ("image_token_id", None, BrokenConfig),
        ("video_token_id", IMAGE, BrokenConfig),
        ("text_config", None, UnsupportedCheckpoint),
        ("text_config.model_type", "qwen3", UnsupportedCheckpoint),
        ("text_config.attn_output_gate", False, UnsupportedCheckpoint),
        ("text_config.layer_types", ["linear_attention"] * 4, UnsupportedCheckpoint),
        ("text_config.rope_parameters.mrope_section", [11, 11, 11], BrokenConfig),
        ("processor_config.json/use_image_id", False, UnsupportedCheckpoint),
        (f"{SETTINGS}/patch_size", 8, UnsupportedCheckpoint),
        (f"{SETTINGS}/downsample_mode", "4x", UnsupportedCheckpoint),
        (f"{SETTINGS}/max_slice_nums", 0, BrokenConfig),
        (f"{SETTINGS}/scale_resolution", "32", BrokenConfig),
        (f"{SETTINGS}/slice_mode", 1, UnsupportedCheckpoint),
        (f"{SETTINGS}/use_image_id", "yes", UnsupportedCheckpoint),
        (f"{SETTINGS}/do_resize", False, UnsupportedCheckpoint),
        (f"{SETTINGS}/do_normalize", False, UnsupportedCheckpoint),
        (
            "tokenizer_config.json/extra_special_tokens",
            {"image_token": 3},
            BrokenTokenizer,
            "image_t",
        ),
    )
    processors: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"slice_mode": False, "image_mean": [0.1, 0.2, 0.3], "rescale_factor": 0.01},
        {"max_slice_nums": 9, "scale_resolution": 100, "resample": 2},
    )
    pixel_sizes = ((1, 50), (60, 1), (1, 1), (3, 60), (31, 33), (1300, 900), (40, 32), (90, 10))
    control_tokens: ClassVar[tuple[str, ...]] = ("<|im_start|>", "<|im_end|>")
    templates: ClassVar[dict[str, str]] = {"like Qwen3.5's": published.MINICPMV}
    texts = (("Say what <|image_pad|>\nis, and <|image_pad|>!", 2), ("Nothing\n\n\nhere", 0))
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

    def __init__(
        self,
        seed: int,
        text: Fields = NONE,
        vision: Fields = NONE,
        processing: Fields = NONE,
        **changes: Any,
    ) -> None:
        fields = {"insert_layer_id": 1, "tie_word_embeddings": False, **self.own_fields, **changes}
        config = self.config_class(
            text_config={**TEXT, **text, "tie_word_embeddings": fields["tie_word_embeddings"]},
            vision_config={**VISION, **vision},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            attn_implementation="eager",
            **fields,
        )
        self.model = with_lasting_states(random_weights(self.model_class(config), seed))
        own = {**SLICING, "downsample_mode": config.downsample_mode, **processing}
        self.processor = MiniCPMV4_6ImageProcessorPil(**own)

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        file = folder / "config.json"
        config = json.loads(file.read_text())
        if dialect == "as published":
            _write_as_published(config, folder)
        if dialect == "mlx-vlm":
            del config["patch_size"]
            weights = folder / "model.safetensors"
            tensors = dict(_converted(*named) for named in load_file(weights).items())
            save_file(tensors, weights, metadata={"format": "mlx"})
        file.write_text(json.dumps(config))

    def block(self, image: Image.Image) -> list[int]:
        made = self._processed([image])
        mode = self.processor.downsample_mode
        whole, *slices = (
            int(n) // (4 if mode == "4x" else 16) for n in made["target_sizes"].prod(-1)
        )
        lines, columns = made["grids"][0]
        block = [START, *[IMAGE] * whole, END]
        for i, rows in enumerate(slices):
            block += [NEWLINE] if i and i % columns == 0 else []
            block += [SLICE_START, *[IMAGE] * rows, SLICE_END]
        assert len(slices) == lines * columns
        return block

    def before(self, index: int) -> list[int]:
        """The number, which the tiny tokenizer does not know."""
        return [ID_START, UNK, ID_END] if self.processor.use_image_id else []

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

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        return MiniCPMV4_6ImageProcessorPil(**settings)([image], return_tensors="np")[
            "pixel_values"
        ]

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        views = [np.array(add_on.slicing.pixels.normalised(v)) for v in add_on.slicing.cut(image)]
        lines = [line for view in views for line in view.reshape(-1, PATCH, *view.shape[1:])]
        return np.concatenate(lines, axis=1).transpose(2, 0, 1)[None]

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", size) for size in ((40, 30), (8, 8), (90, 20))]
        mark = "<|image_pad|>\n"
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief.\n"},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "And these?", "images": pictures[1:count]},
                ],
                "<|im_start|>system\nBe  brief.\n<|im_end|>\n"
                f"<|im_start|>user\n{mark}What  is\n\nthis?<|im_end|>\n"
                "<|im_start|>assistant\nA square.<|im_end|>\n"
                f"<|im_start|>user\n{mark * (count - 1)}And these?<|im_end|>\n"
                "<|im_start|>assistant\n",
            )
            for count in (1, 2, 3)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = self.whole(self.processor, tokenizer)
        return [int(token) for token in whole(images=images or None, text=text)["input_ids"][0]]

    def own_processor(self, folder: Path) -> Any:
        return Built(self.whole, self.processor, folder)

    def whole(self, images: Any, tokenizer: Any, chat_template: str | None = None) -> Any:
        """The family's processor."""
        videos = SimpleNamespace(slice_mode=True, downsample_mode="16x")
        return self.processor_class(images, videos, tokenizer, chat_template)

    def inputs(self, ids: torch.Tensor, images: list[Image.Image]) -> dict[str, Any]:
        return self._pixels(images)

    def _pixels(self, images: list[Image.Image]) -> dict[str, Any]:
        made = self._processed(images)
        return {name: made[name] for name in ("pixel_values", "target_sizes")}

    def _processed(self, images: list[Image.Image]) -> Any:
        return self.processor(images, return_tensors="pt")


class MiniCPMV47Reference(MiniCPMV46Reference):
    name = "minicpmv4_7"
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *MiniCPMV46Reference.refused,
        ("image_start_id", END, BrokenConfig),
        ("slice_end_id", None, BrokenConfig),
        ("newline_id", None, BrokenConfig),
        ("newline_id", "\n", BrokenConfig),
        ("mrope_mode", "plain", UnsupportedCheckpoint),
    )
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


def _write_as_published(config: dict[str, Any], folder: Path) -> None:
    """The fields of MiniCPM-V 4.6 1.3B, and what is not told there left out."""
    text, vision = config["text_config"], config["vision_config"]
    usual = config["downsample_mode"] == "16x"
    for name in ("downsample_mode",) * usual + ("merge_kernel_size", "merger_times", "patch_size"):
        del config[name]
    del vision["window_kernel_size"], vision["insert_layer_id"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"):
        del text[name]
    config |= {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": None, "use_cache": True}
    config |= {"image_size": 1120, "transformers_version": "5.7.0"}
    if config["model_type"] == "minicpmv4_6":
        config["drop_vision_last_layer"] = False
    text |= {"attn_output_gate": True, "full_attention_interval": 2, "mlp_only_layers": []}
    text |= {"mamba_ssm_dtype": "float32", "partial_rotary_factor": 0.5}
    text |= {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
    file = folder / SETTINGS
    saved = json.loads(file.read_text())
    for name in [name for name in saved if name.startswith(("do_", "re"))]:
        del saved[name]
    if usual:
        del saved["downsample_mode"]
    saved["processor_class"] = "MiniCPMV4_6Processor"
    file.write_text(json.dumps(saved))


def _converted(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A weight as mlx-vlm has it."""
    if name.endswith("conv1d.weight"):
        tensor = tensor.permute(0, 2, 1).contiguous()
    if name.endswith("patch_embedding.weight"):
        tensor = tensor.permute(0, 2, 3, 1).contiguous()
    if name.endswith(NORMS) and "language_model" in name:
        tensor = tensor + 1
    name = name.removeprefix("model.").removeprefix("vision_tower." * ("vit_merger" in name))
    name = name.replace("language_model.", "language_model.model.", 1)
    return name.replace("lm_head.", "language_model.lm_head.", 1), tensor
