"""Random small Moxin checkpoints, in every form in which the real one is found."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from support.sizes import DECODER
from vision_add_ons.testing import VOCAB

Tensors = dict[str, np.ndarray]


@dataclass
class TowerShape:
    width: int
    depth: int
    heads: int
    mlp: int
    registers: int = 0
    dino: bool = False
    class_position: bool = False


@dataclass
class Form:
    """How a checkpoint writes the same model."""

    dino: str
    siglip: str
    projector: tuple[str, str, str]
    decoder: str
    scale: str
    registers: str


HF = Form(
    "vision_backbone.featurizer.",
    "vision_backbone.fused_featurizer.",
    ("projector.fc1", "projector.fc2", "projector.fc3"),
    "language_model.",
    "scale_factor",
    "reg_token",
)
NATIVE = Form(
    "vision_backbone.dino_featurizer.",
    "vision_backbone.siglip_featurizer.",
    ("projector.projector.0", "projector.projector.2", "projector.projector.4"),
    "llm_backbone.llm.",
    "gamma",
    "register_tokens",
)
NUMBERED = Form(
    "vision_backbone.featurizer.0.",
    "vision_backbone.featurizer.1.",
    ("projector.0", "projector.2", "projector.4"),
    "llm_backbone.llm.",
    "gamma",
    "reg_token",
)
FORMS = {"hf": HF, "native": NATIVE, "numbered": NUMBERED}

IMAGE_SIZE = 70
PATCH = 14
PATCHES = (IMAGE_SIZE // PATCH) ** 2
DINO = TowerShape(width=48, depth=5, heads=3, mlp=96, registers=4, dino=True)
SIGLIP = TowerShape(width=40, depth=4, heads=5, mlp=92)
TEXT = {
    "model_type": "mistral",
    **DECODER,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "pad_token_id": 90,
}


def config(dino: TowerShape = DINO, siglip: TowerShape = SIGLIP) -> dict[str, Any]:
    return {
        "model_type": "prismatic",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "use_fused_vision_backbone": True,
        "timm_model_ids": [
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_so400m_patch14_siglip_224",
        ],
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "image_resize_strategy": "resize-naive",
        "dino_num_heads": dino.heads,
        "siglip_num_heads": siglip.heads,
        "text_config": dict(TEXT),
    }


class Random:
    """Weights large enough that attention, positions and every bias show in the output."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> np.ndarray:
        return mean + std * self.rng.standard_normal(shape, dtype=np.float32)

    def linear(self, tensors: Tensors, name: str, out: int, into: int, gain: float = 1.0) -> None:
        tensors[f"{name}.weight"] = self.normal(out, into, std=gain * into**-0.5)
        tensors[f"{name}.bias"] = self.normal(out, std=0.2)

    def norm(self, tensors: Tensors, name: str, width: int) -> None:
        tensors[f"{name}.weight"] = self.normal(width, std=0.2, mean=1.0)
        tensors[f"{name}.bias"] = self.normal(width, std=0.2)


def tower(shape: TowerShape, random: Random, patches: int = PATCHES, patch: int = PATCH) -> Tensors:
    """A tower by timm's names, with everything that timm's has, used or not."""
    width, tensors = shape.width, {}
    # Small beside the blocks' outputs, so that the first norms' eps counts too.
    small = 0.05
    tensors["patch_embed.proj.weight"] = random.normal(
        width, 3, patch, patch, std=small * (3 * patch * patch) ** -0.5
    )
    tensors["patch_embed.proj.bias"] = random.normal(width, std=0.2 * small)
    positions = patches + shape.class_position
    tensors["pos_embed"] = random.normal(1, positions, width, std=0.5 * small)
    if shape.dino:
        tensors["cls_token"] = random.normal(1, 1, width, std=small)
        tensors["reg_token"] = random.normal(1, shape.registers, width, std=small)
    else:
        tensors["attn_pool.latent"] = random.normal(1, 1, width)
        tensors["attn_pool.q.weight"] = random.normal(width, width)
    for index in range(shape.depth):
        block = f"blocks.{index}"
        random.norm(tensors, f"{block}.norm1", width)
        random.norm(tensors, f"{block}.norm2", width)
        random.linear(tensors, f"{block}.attn.qkv", 3 * width, width, gain=1.3)
        random.linear(tensors, f"{block}.attn.proj", width, width)
        random.linear(tensors, f"{block}.mlp.fc1", shape.mlp, width)
        random.linear(tensors, f"{block}.mlp.fc2", width, shape.mlp)
        if shape.dino:
            tensors[f"{block}.ls1.gamma"] = random.normal(width, std=0.3, mean=1.0)
            tensors[f"{block}.ls2.gamma"] = random.normal(width, std=0.3, mean=1.0)
    random.norm(tensors, "norm", width)
    return tensors


def projector(vision: int, hidden: int, random: Random) -> Tensors:
    tensors: Tensors = {}
    random.linear(tensors, "fc1", 4 * vision, vision)
    random.linear(tensors, "fc2", hidden, 4 * vision)
    random.linear(tensors, "fc3", hidden, hidden)
    return tensors


def decoder(text: dict[str, Any], random: Random) -> Tensors:
    hidden, heads, mlp = text["hidden_size"], text["num_attention_heads"], text["intermediate_size"]
    kv = hidden // heads * text["num_key_value_heads"]
    tensors = {
        "model.embed_tokens.weight": random.normal(text["vocab_size"], hidden, std=0.1),
        "model.norm.weight": random.normal(hidden, std=0.2, mean=1.0),
        "lm_head.weight": random.normal(text["vocab_size"], hidden, std=hidden**-0.5),
    }
    for index in range(text["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }
        for name, (out, into) in shapes.items():
            tensors[f"{layer}.{name}.weight"] = random.normal(out, into, std=1.3 * into**-0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = random.normal(hidden, std=0.2, mean=1.0)
    return tensors


@dataclass
class Parts:
    """The tensors of a model by timm's, the projector's and Mistral's own names."""

    dino: Tensors
    siglip: Tensors
    projector: Tensors
    decoder: Tensors

    def named(self, form: Form) -> Tensors:
        """All of them by the names of a checkpoint."""
        named: Tensors = {}
        for name, tensor in self.dino.items():
            name = name.replace(".gamma", f".{form.scale}").replace("reg_token", form.registers)
            named[form.dino + name] = tensor
        named |= {form.siglip + name: tensor for name, tensor in self.siglip.items()}
        for layer, name in zip(("fc1", "fc2", "fc3"), form.projector, strict=True):
            named |= {f"{name}.{end}": self.projector[f"{layer}.{end}"] for end in WEIGHT_AND_BIAS}
        return named | {form.decoder + name: tensor for name, tensor in self.decoder.items()}


WEIGHT_AND_BIAS = ("weight", "bias")


def random_parts(seed: int, dino: TowerShape = DINO, siglip: TowerShape = SIGLIP) -> Parts:
    random = Random(seed)
    return Parts(
        tower(dino, random),
        tower(siglip, random),
        projector(dino.width + siglip.width, TEXT["hidden_size"], random),
        decoder(TEXT, random),
    )


def write(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_seeing(folder: Path, text: Path, seed: int, template: bool = True) -> Path:
    """A text model with random eyes; without `template`, the add-on's own prompt form is used."""
    random_ = Random(seed)
    text_config = json.loads((text / "config.json").read_text())
    parts = Parts(
        tower(DINO, random_),
        tower(SIGLIP, random_),
        projector(DINO.width + SIGLIP.width, text_config["hidden_size"], random_),
        load_file(text / "model.safetensors"),
    )
    fields = config() | {"image_token_index": 0}
    fields["text_config"] = text_config
    write(folder, parts.named(HF), fields)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(text / name, folder / name)
    file = folder / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text())
    beside = text / "chat_template.jinja"
    if not template:
        tokenizer.pop("chat_template", None)
    elif beside.exists():
        tokenizer["chat_template"] = beside.read_text()
    file.write_text(json.dumps(tokenizer))
    return folder
