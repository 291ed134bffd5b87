"""A tiny random Qwen3.5 of transformers, with experts or without, written as each tool does."""

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from support import published_qwen_templates as published
from support.experts import ChoosesExperts
from support.qwen2_vl_reference import LINEAR, Qwen2VLReference
from support.qwen3_vl_reference import Qwen3VLMoeReference, Qwen3VLReference
from support.sizes import TEXT
from support.summing import summed_in_order
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.testing import TOLERANCE, centred, relative_error

ROPE = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [3, 3, 2],
    "mrope_interleaved": True,
    "partial_rotary_factor": 0.5,
}
ROPE_PARAMETERS = "rope_parameters"
DEEPSTACK = "deepstack_visual_indexes"
ORDERS = 16
"""In so many orders of summation transformers' float32 is asked how far it is off its float64. One
alone is a matter of luck: the same answer was off by 4e-6 in one and by 27e-6 in another."""
NORMS = ("layernorm.weight", "language_model.norm.weight", "q_norm.weight", "k_norm.weight")
"""Those that count from 1."""


def with_lasting_states(model: Any) -> Any:
    """A model with this decoder and random weights, with others where those would not do."""
    model.set_experts_implementation("eager")  # the usual one knows no float64
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(NORMS) and "vision_tower" not in name:
                parameter.sub_(1)
            if name.endswith("A_log"):
                # States that last, as in trained models: where each token lets the state go,
                # its norm makes float32's rounding as large as what is left.
                parameter.abs_().sub_(4)
    return model


class Qwen35Reference(Qwen3VLReference):
    name = "qwen3_5"
    refused: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *(
            case
            for case in Qwen3VLReference.refused
            if not {DEEPSTACK, ROPE_PARAMETERS} & set(case[0].split("."))
        ),
        (
            f"text_config.{ROPE_PARAMETERS}",
            {**ROPE, "rope_type": "dynamic", "factor": 2.0},
            UnsupportedCheckpoint,
            "rope_type",
        ),
        ("vision_config.rope_parameters", LINEAR, UnsupportedCheckpoint, "rope_type"),
        (f"vision_config.{DEEPSTACK}", [0], UnsupportedCheckpoint),
        ("text_config.attn_output_gate", False, UnsupportedCheckpoint),
        ("text_config.layer_types", ["linear_attention"] * 4, UnsupportedCheckpoint),
        (
            "text_config.layer_types",
            ["full_attention", "linear_attention"] * 2,
            UnsupportedCheckpoint,
        ),
    )
    templates: ClassVar = {"as published": published.QWEN35}
    unused = (r"mtp\.",)
    config_class = Qwen3_5Config
    model_class = Qwen3_5ForConditionalGeneration
    text: ClassVar = {
        **TEXT,
        "head_dim": 32,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": ROPE,
    }
    vision: ClassVar = {
        name: size for name, size in Qwen3VLReference.vision.items() if name != DEEPSTACK
    }

    def __init__(self, seed: int, tied: bool = False, **text: Any) -> None:
        super().__init__(seed, tied, **text)
        with_lasting_states(self.model)

    def logits(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> np.ndarray:
        """In float64, of which float32 is off by more than elsewhere, also transformers' own."""
        self.model.double()
        try:
            return super().logits(tokens, images, answer)
        finally:
            self.model.float()

    def allowed(self, tokens: list[int], images: list[Image.Image], answer: list[int]) -> float:
        start = len(tokens) - 1
        double = centred(self.logits(tokens, images, answer)[start:])
        off: list[float] = []
        for order in range(ORDERS):
            with summed_in_order(self.model, order):
                single = centred(super().logits(tokens, images, answer)[start:])
            off += [relative_error(a, b) for a, b in zip(single, double, strict=True)]
        return max(TOLERANCE, 1.5 * max(off))

    def write(self, folder: Path, dialect: str) -> None:
        super().write(folder, dialect)
        if dialect == "transformers 5":
            return
        file = folder / "config.json"
        config = json.loads(file.read_text())
        text, vision = config["text_config"], config["vision_config"]
        text["rope_parameters"] = {**text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta")}
        del text["layer_types"]
        text |= {"full_attention_interval": 2, "attn_output_gate": True}
        vision["deepstack_visual_indexes"] = []
        file.write_text(json.dumps(config))

    def converted(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if name.endswith("conv1d.weight"):
            tensor = tensor.permute(0, 2, 1).contiguous()
        elif name.endswith(NORMS):
            tensor = tensor + 1
        return super().converted(name, tensor)

    def published(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        guess = {"mtp.norm.weight": torch.ones(3)} if name.startswith("lm_head") else {}
        return {name: tensor, **guess}

    def processed(self, tokenizer: Any, text: str, images: list[Image.Image]) -> list[int]:
        """By the family's own class, which cuts words as it knows, whatever tokenizer.json says."""
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            own = Qwen3_5Tokenizer.from_pretrained(folder)
            return super().processed(own, text, images)

    def rows(self, image: Image.Image) -> np.ndarray:
        return Qwen2VLReference.rows(self, image)


class Qwen35MoeReference(ChoosesExperts, Qwen35Reference):
    name = "qwen3_5_moe"
    config_class = Qwen3_5MoeConfig
    model_class = Qwen3_5MoeForConditionalGeneration
    text: ClassVar = {
        **Qwen35Reference.text,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 32,
    }
    quantized = Qwen3VLMoeReference.quantized
