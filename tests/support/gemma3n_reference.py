"""A tiny random Gemma 3n of transformers, whose tower is ours in torch: timm is not needed."""

import copy
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
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    Gemma3nTextModel,
)
from transformers.models.gemma3n.modeling_gemma3n import (
    Gemma3nModel,
    Gemma3nMultimodalEmbedder,
    Gemma3nPreTrainedModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from support import published_templates as published
from support.mobilenetv5 import WIDTH, TorchMobileNetV5
from support.pictures import photographs
from support.processors import Built
from support.sizes import TEXT
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import Conversation, Reference, random_weights

BEGIN, BEGIN_SOUND, END, IMAGE, END_SOUND, SOUND = 80, 81, 84, 85, 90, 91
SIDE, GRID = 64, 2
ROWS = GRID**2
LAYERS, SHARED = 6, 2


def _inverted(width: int, start: int, mid: int, ratio: float, stride: int = 1) -> dict[str, Any]:
    kernels = {"dw_kernel_size_start": start, "dw_kernel_size_mid": mid, "dw_kernel_size_end": 0}
    block = {"block_type": "uir", "out_chs": width, "stride": stride, "act_layer": None}
    return {**block, **kernels, "exp_ratio": ratio, "se_ratio": 0.0, "noskip": False}


def _attending(width: int, coarser: int) -> dict[str, Any]:
    block = {"block_type": "mqa", "out_chs": width, "stride": 1, "act_layer": None}
    heads = {"num_heads": 2, "key_dim": 8, "value_dim": 8}
    return {**block, **heads, "dw_kernel_size": 3, "kv_stride": coarser, "noskip": False}


def _edge(width: int, stride: int) -> dict[str, Any]:
    block = {"block_type": "er", "out_chs": width, "stride": stride, "act_layer": None}
    sizes = {"exp_kernel_size": 3, "pw_kernel_size": 1, "exp_ratio": 4.0, "force_in_chs": 0}
    return {**block, **sizes, "se_ratio": 0.0, "noskip": False}


TOWER: dict[str, Any] = {
    "stem_size": 16,
    "block_args": [
        [_edge(16, 2), _edge(16, 1)],
        [_inverted(16, 3, 5, 6.0, 2), _inverted(16, 5, 0, 4.0)],
        [_inverted(16, 5, 5, 2.0, 2), _attending(16, 2), _inverted(16, 0, 0, 2.0)],
        [_inverted(24, 5, 5, 2.0, 2), _attending(24, 1), _inverted(24, 0, 0, 2.0)],
    ],
    "msfa_output_resolution": GRID,
}
"""What timm is told of the tower: the kinds of blocks that the published one has, few of each."""
VISION: dict[str, Any] = {
    "model_type": "gemma3n_vision",
    "architecture": "mobilenetv5_300m_enc",
    "hidden_size": WIDTH,
    "vocab_size": 6,
    "vocab_offset": 84,
    "model_args": TOWER,
}
DECODER: dict[str, Any] = {
    **TEXT,
    "max_position_embeddings": 1024,
    "vocab_size_per_layer_input": 84,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": [96] * LAYERS,
    "num_hidden_layers": LAYERS,
    "num_kv_shared_layers": SHARED,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "sliding_window": 24,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.6] * 2 + [0.0] * (LAYERS - 2),
}
UNUSED = [f"layers.{i}.self_attn" for i in range(LAYERS - SHARED, LAYERS)]


class Tower(torch.nn.Module):
    """In the place of transformers' `TimmWrapperModel`."""

    def __init__(self, args: Mapping[str, Any]) -> None:
        super().__init__()
        self.timm_model = TorchMobileNetV5(**args)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.timm_model(pixel_values))


class _Inner(Gemma3nModel):
    def __init__(self, config: Gemma3nConfig) -> None:
        Gemma3nPreTrainedModel.__init__(self, config)
        text = config.text_config
        self.vocab_size = text.vocab_size
        self.vocab_size_per_layer_input = text.vocab_size_per_layer_input
        self.vision_tower = Tower(config.vision_config.model_args)
        self.language_model = Gemma3nTextModel(text)
        self.audio_tower = torch.nn.Linear(4, 4)
        self.embed_vision = Gemma3nMultimodalEmbedder(config.vision_config, text)
        self.embed_audio = Gemma3nMultimodalEmbedder(config.audio_config, text)
        self.post_init()


class _Whole(Gemma3nForConditionalGeneration):
    def __init__(self, config: Gemma3nConfig) -> None:
        Gemma3nPreTrainedModel.__init__(self, config)
        self.model = _Inner(config)
        text = config.text_config
        self.lm_head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


class Gemma3nReference(Reference):
    name = "gemma3n"
    dialects = ("transformers 4", "transformers 5", "mlx-vlm")
    image_token = IMAGE
    unused = (
        r".*audio_tower\.",
        *(f".*{n}.[kv]_" for n in UNUSED),
    )
    ignored: ClassVar[tuple[str, ...]] = ("vision_config.hidden_act", "vision_config.label_names")
    refused = (
        ("vision_config.model_type", "siglip_vision_model", UnsupportedCheckpoint),
        ("vision_config.architecture", "mobilenetv5_base", UnsupportedCheckpoint),
        ("vision_config.hidden_size", 1024, UnsupportedCheckpoint),
        ("vision_config.vocab_size", 5, UnsupportedCheckpoint, "vocab_offset"),
        ("audio_config.vocab_size", 5, UnsupportedCheckpoint),
        ("vision_config.model_args", {"pad_type": ""}, UnsupportedCheckpoint, "pad_type"),
        ("text_config.model_type", "gemma3_text", UnsupportedCheckpoint),
        ("text_config.hidden_activation", "gelu", UnsupportedCheckpoint),
        ("text_config.rope_scaling", {"rope_type": "linear", "factor": 2.0}, UnsupportedCheckpoint),
        ("text_config.num_kv_shared_layers", 6, BrokenConfig),
        ("text_config.num_kv_shared_layers", 5, UnsupportedCheckpoint, "layer_types"),
        ("text_config.use_bidirectional_attention", True, UnsupportedCheckpoint),
        ("tie_word_embeddings", False, UnsupportedCheckpoint),
        ("vision_soft_tokens_per_image", 256, UnsupportedCheckpoint),
        ("image_token_id", 96, UnsupportedCheckpoint),
        ("audio_token_id", 0, BrokenConfig),
        ("processor_config.json/image_seq_length", 256, UnsupportedCheckpoint),
        ("preprocessor_config.json/do_resize", False, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"height": 48, "width": 48}, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"height": 64, "width": 32}, UnsupportedCheckpoint),
        ("preprocessor_config.json/size", {"shortest_edge": 64}, UnsupportedCheckpoint),
    )
    means: ClassVar[dict[str, Any]] = {"do_normalize": True, "rescale_factor": 0.01}
    processors = ({}, {"resample": 3}, {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3]})
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "boi_token": (BEGIN, "<start_of_image>"),
        "image_token": (IMAGE, "<image_soft_token>"),
        "eoi_token": (END, "<end_of_image>"),
        "boa_token": (BEGIN_SOUND, "<start_of_audio>"),
        "audio_token": (SOUND, "<audio_soft_token>"),
        "eoa_token": (END_SOUND, "<end_of_audio>"),
    }
    control_tokens = ("<start_of_turn>", "<end_of_turn>")
    templates: ClassVar[dict[str, str]] = {"as published": published.GEMMA3N}
    texts = (
        ("Look:\n<image_soft_token>\nNow say what it is, and this <image_soft_token>!", 2),
        ("Nothing to see\n\n\nhere", 0),
    )

    def __init__(self, seed: int, **text: Any) -> None:
        config = Gemma3nConfig(
            text_config={**DECODER, **text},
            vision_config=copy.deepcopy(VISION),
            audio_config={"hidden_size": 32, "vocab_size": 6, "vocab_offset": 90},
            vision_soft_tokens_per_image=ROWS,
            boi_token_id=BEGIN,
            eoi_token_id=END,
            image_token_id=IMAGE,
            boa_token_id=BEGIN_SOUND,
            eoa_token_id=END_SOUND,
            audio_token_id=SOUND,
            attn_implementation="eager",
        )
        self.model = random_weights(_Whole(config), seed, spread=0.5)
        for layer in self.model.model.language_model.layers[: LAYERS - SHARED]:
            layer.self_attn.k_norm.weight.data /= 2  # nothing else divides what attention compares
        for name, weight in self.model.model.vision_tower.named_parameters():
            if weight.ndim == 4:  # by all that goes into a value, and not by the last axis alone
                weight.data /= 1.5 * (weight[0].numel() / weight.shape[-1]) ** 0.5
            elif "layer_scale" in name and ".0.layer_scale" not in name:
                weight.data /= 4  # else halves are off by 10 percent and more, PyTorch's too
        self.processor = SiglipImageProcessorPil(
            size={"height": SIDE, "width": SIDE}, resample=2, do_normalize=False
        )

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        counts = {"processor_class": "Gemma3nProcessor", "image_seq_length": ROWS}
        (folder / "processor_config.json").write_text(json.dumps(counts))
        if dialect == "transformers 5":
            return
        file = folder / "config.json"
        config = json.loads(file.read_text())
        text = config["text_config"]
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope["full_attention"]["rope_theta"]
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        text |= {"rope_scaling": None, "query_pre_attn_scalar": 16, "altup_lr_multiplier": 1.0}
        config["vision_config"] |= {"do_pooling": True, "label_names": ["LABEL_0", "LABEL_1"]}
        del config["tie_word_embeddings"], text["tie_word_embeddings"]
        file.write_text(json.dumps(config))
        tensors = load_file(folder / "model.safetensors")
        for stem in UNUSED:  # keys and values that other layers' are taken for
            for part in ("k_norm", "k_proj", "v_proj"):
                own = f"model.language_model.layers.0.self_attn.{part}.weight"
                tensors[f"model.language_model.{stem}.{part}.weight"] = tensors[own] + 1
        if dialect == "mlx-vlm":
            tensors = {_of_mlx_vlm(name): _turned(name, t) for name, t in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def block(self, image: Image.Image) -> list[int]:
        return [IMAGE] * ROWS

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            return self.model.get_image_features(self._pixels([image])).pooler_output[0].numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra = {"pixel_values": self._pixels(images)} if images else {}
        with torch.no_grad():
            ids = torch.tensor([tokens + answer])
            return self.model(input_ids=ids, **extra).logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        theirs = SiglipImageProcessorPil(**settings)
        return theirs([image], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        return np.array(add_on.pixels(image, add_on.side, add_on.side))

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", (30 + i, 20)) for i in range(2)]
        mark = "<image_soft_token>"
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief.\n"},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "\nAnd this?", "images": pictures[1:count]},
                ],
                f"<s><start_of_turn>user\nBe  brief.\n\n\n{mark}What  is\n\nthis?<end_of_turn>\n"
                "<start_of_turn>model\nA square.<end_of_turn>\n"
                f"<start_of_turn>user\n{mark * (count - 1)}And this?<end_of_turn>\n"
                "<start_of_turn>model\n",
            )
            for count in (1, 2)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = _processor(self.processor, tokenizer)
        made = whole(images=images or None, text=text, add_special_tokens=False)
        return list(made["input_ids"][0])

    def own_processor(self, folder: Path) -> Any:
        return Built(_processor, self.processor, folder)

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        return published.with_first_part(message, "system")

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        return self.processor(images, return_tensors="pt")["pixel_values"]


def _processor(images: Any, tokenizer: Any, **settings: Any) -> Gemma3nProcessor:
    sounds = Gemma3nAudioFeatureExtractor()
    return Gemma3nProcessor(sounds, images, tokenizer, image_seq_length=ROWS, **settings)


def _of_mlx_vlm(name: str) -> str:
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1)


def _turned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """With the channels of convolutions at the end."""
    return tensor.permute(0, 2, 3, 1).contiguous() if tensor.ndim == 4 else tensor
