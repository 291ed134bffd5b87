"""A tiny random Pixtral of transformers, written as each tool writes it."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import edit_config, extended_tokenizer
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from model_kit.kit import ModelKit, load_model_kit
from vision_add_ons.testing import BOS, EOS, PAD, VOCAB, Reference, random_weights

IMG, BREAK, END = 80, 81, 82
TOKENS = {
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}

Fields = Mapping[str, Any]
NONE: Fields = {}

TEXT: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3e5},
    "sliding_window": None,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
VISION: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 8,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "axial", "rope_theta": 500.0},
}


class PixtralReference(Reference):
    name = "pixtral"
    dialects = ("transformers 5", "transformers 4", "mlx-vlm", "state dict")
    """The last with the names that transformers 5 has in memory."""
    image_token = IMG
    cell = 8
    """A row of embeddings stands for so many pixels a side."""
    merged = 1
    """And for so many patches."""
    longest: ClassVar[int] = 48
    """The second of the pictures shown is longer."""

    def __init__(self, seed: int, vision: Fields = NONE, **changes: Any) -> None:
        fields = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", **changes}
        config = LlavaConfig(
            text_config=TEXT,
            vision_config={**VISION, **vision},
            image_token_index=IMG,
            attn_implementation="eager",
            **fields,
        )
        self.model = random_weights(LlavaForConditionalGeneration(config), seed)
        self.processor = PixtralImageProcessorPil(size={"longest_edge": self.longest})

    def write(self, folder: Path, dialect: str) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        settings = {
            "image_token": f"w{IMG}",
            "image_break_token": f"w{BREAK}",
            "image_end_token": f"w{END}",
            "patch_size": self.cell // self.merged,
            "spatial_merge_size": self.merged,
        }
        (folder / "processor_config.json").write_text(json.dumps(settings))
        if dialect == "transformers 5":
            return
        file = folder / "model.safetensors"
        if dialect == "state dict":
            state = {name: t.contiguous() for name, t in self.model.state_dict().items()}
            save_file(state, file, metadata={"format": "pt"})
            return
        config = json.loads((folder / "config.json").read_text())
        write_flat(config)
        if dialect == "mlx-vlm":
            self.convert(config)
            tensors = {
                name.replace("vision_tower.", "vision_tower.vision_model."): t
                for name, t in load_file(file).items()
            }
            name = "vision_tower.vision_model.patch_conv.weight"
            tensors[name] = tensors[name].permute(0, 2, 3, 1).contiguous()
            save_file(tensors, file, metadata={"format": "mlx"})
        (folder / "config.json").write_text(json.dumps(config))

    def convert(self, config: dict[str, Any]) -> None:
        """What mlx-vlm calls it, with its defaults left out."""
        config["model_type"] = "pixtral"
        del config["vision_feature_layer"], config["vision_feature_select_strategy"]

    def grid(self, image: Image.Image) -> tuple[int, int]:
        height, width = self._processed([image])["image_sizes"][0].tolist()
        return height // self.cell, width // self.cell

    def block(self, image: Image.Image) -> list[int]:
        lines, columns = self.grid(image)
        return ([IMG] * columns + [BREAK]) * (lines - 1) + [IMG] * columns + [END]

    def rows(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            features = self.model.model.get_image_features(**self._processed([image]))
        return features.pooler_output[0].numpy()

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        extra = self._processed(images) if images else {}
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([tokens + answer]), **extra)
        return out.logits[0].numpy()

    def _processed(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        patch = {"height": self.cell, "width": self.cell}  # as the whole processor has it
        return dict(self.processor(images, patch_size=patch, return_tensors="pt"))


def write_flat(config: dict[str, Any]) -> None:
    """Turn a config into what transformers 4 wrote: rope flat, ties and defaults left out."""
    config.pop("tie_word_embeddings")
    for part in (config["text_config"], config["vision_config"]):
        if part["rope_parameters"]["rope_type"] != "yarn":  # known to transformers 5 only
            part["rope_theta"] = part.pop("rope_parameters")["rope_theta"]
        part.pop("attention_dropout")
    config["text_config"].pop("tie_word_embeddings")
    config["vision_config"].pop("num_channels")


def kit_with_words(folder: Path, demo: Path, other: Path) -> ModelKit:
    """A copy in `other` whose tokenizer knows words, and the special tokens by their usual names.

    Their ids are beyond the tiny decoder's, so it serves for prompts alone.
    """
    shutil.copytree(folder, other, dirs_exist_ok=True)
    tokenizer = extended_tokenizer(demo, other, TOKENS, bos_token="<|im_start|>")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(other)
    (other / "chat_template.jinja").unlink(missing_ok=True)
    edit_config(other, image_token_index=tokenizer.image_token_id)
    settings = json.loads((other / "processor_config.json").read_text())
    named = {name: value for name, value in settings.items() if name not in TOKENS}
    (other / "processor_config.json").write_text(json.dumps(named))
    return load_model_kit(other)


def processor_of(kit: ModelKit, reference: PixtralReference) -> Any:
    """transformers' own processor for such a copy."""
    return _processor_class()(
        PixtralImageProcessorPil(size={"longest_edge": reference.longest}),
        PreTrainedTokenizerFast.from_pretrained(kit.folder),
        patch_size=reference.cell // reference.merged,
        spatial_merge_size=reference.merged,
    )


def _processor_class() -> Any:
    """transformers' `PixtralProcessor`, which it withholds where there is no torchvision.

    Only the check for it and an import that goes unused here are left out.
    """
    file = Path(image_processing_pil_pixtral.__file__).with_name("processing_pixtral.py")
    spec = importlib.util.spec_from_file_location("transformers.models.pixtral.processing", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr("transformers.utils.import_utils.requires", lambda **_: lambda obj: obj)
        patch.setattr("transformers.utils.is_vision_available", lambda: False)
        spec.loader.exec_module(module)
    return module.PixtralProcessor
