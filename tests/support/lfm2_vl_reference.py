"""A tiny random LFM2-VL of transformers, written as each tool writes it."""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Lfm2VlProcessor

from support import published_templates as published
from support.pictures import photographs
from support.processors import Built
from support.sizes import DECODER
from support.torchvision_processors import image_processor
from vision_add_ons.errors import BrokenConfig, BrokenTokenizer, UnsupportedCheckpoint
from vision_add_ons.testing import BOS, EOS, PAD, VOCAB, Conversation, Reference, random_weights

IMAGE, START, END, THUMBNAIL = 80, 81, 82, 83
PLACES = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
TILES = {place: 84 + i for i, place in enumerate(PLACES)}
KINDS = ["conv", "full_attention", "conv", "full_attention", "conv"]
Fields = Mapping[str, Any]
NONE: Fields = {}

TEXT: dict[str, Any] = {
    **DECODER,
    "model_type": "lfm2",
    "vocab_size": VOCAB,
    "num_hidden_layers": len(KINDS),
    "layer_types": KINDS,
    "block_multiple_of": 48,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
VISION: dict[str, Any] = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "num_patches": 25,
    "vision_use_head": False,
}
TILING: dict[str, Any] = {
    "encoder_patch_size": 4,
    "tile_size": 16,
    "min_image_tokens": 4,
    "max_image_tokens": 8,
    "max_tiles": 4,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
SETTINGS = "preprocessor_config.json"


def image_processor_class() -> Any:
    return image_processor("lfm2_vl", "Lfm2VlImageProcessor")


class AnyImageProcessor(Lfm2VlProcessor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let the image processor be one that transformers would withhold."""


class Lfm2VLReference(Reference):
    name = "lfm2_vl"
    dialects = ("transformers 5", "transformers 4", "as first published", "mlx-vlm")
    image_token = IMAGE
    sizes = ((44, 28), (20, 30))
    """Two tiles and the whole, and the whole alone."""
    more_sizes = ((64, 64), (9, 47), (61, 8), (150, 20))
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        ("vision_config.model_type", "siglip_vision_model", UnsupportedCheckpoint),
        ("vision_config.hidden_act", "gelu", UnsupportedCheckpoint),
        ("vision_config.num_channels", 4, UnsupportedCheckpoint),
        ("vision_config.patch_size", 0, BrokenConfig),
        ("vision_config.patch_size", [4, 4], BrokenConfig),
        ("vision_config.patch_size", 8, UnsupportedCheckpoint),
        ("vision_config.num_patches", 24, BrokenConfig),
        ("vision_config.num_attention_heads", 5, BrokenConfig),
        ("vision_config.num_hidden_layers", 0, BrokenConfig),
        ("vision_config", ["siglip2"], BrokenConfig),
        ("vision_feature_layer", -2, UnsupportedCheckpoint),
        ("projector_hidden_act", "silu", UnsupportedCheckpoint),
        ("projector_hidden_size", 0, BrokenConfig),
        ("downsample_factor", 0, BrokenConfig),
        ("downsample_factor", 4, UnsupportedCheckpoint),
        ("tie_word_embeddings", False, UnsupportedCheckpoint),
        ("image_token_id", 85, BrokenConfig),
        ("text_config.model_type", "llama", UnsupportedCheckpoint),
        ("text_config.rope_parameters", YARN, UnsupportedCheckpoint, "rope_type"),
        ("text_config.head_dim", 32, UnsupportedCheckpoint),
        ("text_config.layer_types", ["conv"] * 5, UnsupportedCheckpoint),
        ("text_config.layer_types", ["full_attention"] * 5, UnsupportedCheckpoint),
        ("text_config.conv_L_cache", 1, UnsupportedCheckpoint),
        ("processor_config.json/use_image_special_tokens", False, UnsupportedCheckpoint),
        (f"{SETTINGS}/encoder_patch_size", 16, UnsupportedCheckpoint),
        (f"{SETTINGS}/downsample_factor", 1, UnsupportedCheckpoint),
        (f"{SETTINGS}/do_rescale", False, UnsupportedCheckpoint),
        (f"{SETTINGS}/do_pad", False, UnsupportedCheckpoint),
        (f"{SETTINGS}/resample", 1, UnsupportedCheckpoint),
        (f"{SETTINGS}/use_thumbnail", "yes", UnsupportedCheckpoint),
        (f"{SETTINGS}/do_image_splitting", 2, UnsupportedCheckpoint),
        (f"{SETTINGS}/min_tiles", 1, UnsupportedCheckpoint),
        (f"{SETTINGS}/min_tiles", 5, BrokenConfig),
        (f"{SETTINGS}/max_tiles", 10**9, BrokenConfig),
        (f"{SETTINGS}/max_tiles", 5, BrokenTokenizer, "img_row_1_col_5"),
        (f"{SETTINGS}/tile_size", 20, UnsupportedCheckpoint),
        (f"{SETTINGS}/tile_size", "16", BrokenConfig),
        (f"{SETTINGS}/max_image_tokens", 3, BrokenConfig),
        (f"{SETTINGS}/max_pixels_tolerance", "2", BrokenConfig),
    )
    processors: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"use_thumbnail": False, "resample": 3},
        {"do_image_splitting": False, "max_image_tokens": 400},
        {"max_pixels_tolerance": 1.3, "image_mean": [0.1, 0.2, 0.3], "rescale_factor": 0.01},
        {"do_resize": False, "min_tiles": 3, "tile_size": 24},
    )
    pixel_sizes = ((1, 50), (60, 1), (1, 1), (3, 60), (31, 33), (1300, 900), (40, 32), (90, 10))
    special_tokens: ClassVar[dict[str, tuple[int, str]]] = {
        "image_token": (IMAGE, "<image>"),
        "image_start_token": (START, "<|image_start|>"),
        "image_end_token": (END, "<|image_end|>"),
        "image_thumbnail_token": (THUMBNAIL, "<|img_thumbnail|>"),
        **{
            f"tile_{line}_{column}": (token, f"<|img_row_{line}_col_{column}|>")
            for (line, column), token in TILES.items()
        },
    }
    control_tokens: ClassVar[tuple[str, ...]] = ("<|im_start|>", "<|im_end|>")
    templates: ClassVar[dict[str, str]] = {
        "as published": published.LFM2_VL,
        "of LFM2.5": published.LFM2_5_VL,
    }
    texts = (("Look: <image>\nNow say what it is,<image>!", 2), ("Nothing\n\n\nhere", 0))

    def __init__(self, seed: int, vision: Fields = NONE, text: Fields = NONE, **changes: Any):
        config = Lfm2VlConfig(
            text_config={**TEXT, **text},
            vision_config={**VISION, **vision},
            image_token_id=IMAGE,
            attn_implementation="eager",
            **{"projector_hidden_size": 40, **changes},
        )
        self.model = random_weights(Lfm2VlForConditionalGeneration(config), seed)
        self.processor = image_processor_class()(**TILING)

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if dialect == "transformers 5":
            return
        file = folder / "model.safetensors"
        tensors = {_renamed(name, dialect): t for name, t in load_file(file).items()}
        if dialect == "mlx-vlm":
            convs = [name for name in tensors if name.endswith("conv.conv.weight")]
            tensors |= {name: tensors[name].permute(0, 2, 1).contiguous() for name in convs}
        save_file(tensors, file, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        _write_flat(config)
        if dialect != "transformers 4":
            config["model_type"] = "lfm2-vl"
            config["image_token_index"] = config.pop("image_token_id")
            config["vision_feature_layer"] = -1
        if dialect == "mlx-vlm":
            config["vision_config"]["model_type"] = "lfm2_vl"
            config["text_config"]["full_attn_idxs"] = [1, 3]
        if dialect == "as first published":
            config |= _write_first_settings(folder)
        (folder / "config.json").write_text(json.dumps(config))

    def block(self, image: Image.Image) -> list[int]:
        made = self.processor([image], return_row_col_info=True)
        lines, columns = made["image_rows"][0], made["image_cols"][0]
        rows = [int(height * width) // 4 for height, width in made["spatial_shapes"]]
        if lines * columns == 1:
            return [START, *[IMAGE] * rows[0], END]
        places = [(line + 1, column + 1) for line in range(lines) for column in range(columns)]
        tokens = [*(TILES[place] for place in places), THUMBNAIL]
        views = [[token, *[IMAGE] * count] for token, count in zip(tokens, rows, strict=True)]
        return [START, *chain.from_iterable(views), END]

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(**self._processed([image]))
        return torch.cat(features.pooler_output).numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra = self._processed(images) if images else {}
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([tokens + answer]), **extra)
        return out.logits[0].numpy()

    def pictures(self) -> list[Image.Image]:
        return photographs()

    def pixels(self, image: Image.Image, settings: Mapping[str, Any]) -> np.ndarray:
        made = image_processor_class()(**settings)([image], return_tensors="np")
        return made["pixel_values"][made["pixel_attention_mask"] == 1]

    def our_pixels(self, add_on: Any, image: Image.Image) -> np.ndarray:
        views = [np.array(add_on.views.values(view)) for view in add_on.views.cut(image)]
        return np.concatenate([view.reshape(-1, view.shape[-1]) for view in views])

    def conversations(self) -> list[Conversation]:
        pictures = [Image.new("RGB", size) for size in ((40, 30), (8, 8), (90, 20))]
        return [
            Conversation(
                [
                    {"role": "system", "content": "Be  brief.\n"},
                    {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
                    {"role": "assistant", "content": "A square."},
                    {"role": "user", "content": "\nAnd these?", "images": pictures[1:count]},
                ],
                "<s><|im_start|>system\nBe  brief.\n<|im_end|>\n"
                "<|im_start|>user\n<image>What  is\n\nthis?<|im_end|>\n"
                "<|im_start|>assistant\nA square.<|im_end|>\n"
                f"<|im_start|>user\n{'<image>' * (count - 1)}\nAnd these?<|im_end|>\n"
                "<|im_start|>assistant\n",
            )
            for count in (1, 2, 3)
        ]

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        whole = AnyImageProcessor(self.processor, tokenizer)
        made = whole(images=images or None, text=text)
        return [int(token) for token in made["input_ids"][0]]

    def own_processor(self, folder: Path) -> Any:
        return Built(AnyImageProcessor, self.processor, folder)

    def as_read(self, template: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if template == "as published":
            return message
        return published.with_first_part(message, "system")

    def _processed(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images, return_tensors="pt"))


def _renamed(name: str, dialect: str) -> str:
    """A name of transformers 5 as it was published, or as mlx-vlm has it."""
    if dialect == "mlx-vlm":
        name = name.replace("model.language_model.", "language_model.model.", 1)
        return name.removeprefix("model.") if "language_model" not in name else name
    return name.replace("model.vision_tower.", "model.vision_tower.vision_model.", 1)


def _write_flat(config: dict[str, Any]) -> None:
    """Turn a config into what transformers 4 wrote, with the fields that LFM2 began with."""
    text = config["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    width = text["hidden_size"]
    text |= {"block_dim": width, "conv_dim": width, "conv_dim_out": width}
    text |= {"block_ff_dim": text["intermediate_size"], "block_use_swiglu": True}
    text |= {"num_heads": text["num_attention_heads"], "tie_embedding": True}
    text |= {"block_norm_eps": 1e-5, "block_out_init_scale": 1.0, "use_pos_enc": True}
    del text["full_attn_idxs"], text["tie_word_embeddings"]
    del config["tie_word_embeddings"], config["projector_use_layernorm"]


def _write_first_settings(folder: Path) -> dict[str, Any]:
    """Tiling beside the tokens' settings, and an image processor of SigLIP 2's.

    Returns what stands in config.json too.
    """
    file = folder / SETTINGS
    saved = json.loads(file.read_text())
    first = {name: saved.pop(name) for name in (*TILING, "min_tiles", "use_thumbnail")}
    first |= {"use_image_special_tokens": True, "max_num_patches": 32}
    (folder / "processor_config.json").write_text(json.dumps(first))
    saved |= {"image_processor_type": "Siglip2ImageProcessor", "do_resize": False}
    file.write_text(json.dumps(saved))
    return first
