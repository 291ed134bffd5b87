"""Trained weights become what ships: eyes in a checkpoint's names, and an adapter of mlx-lm's form.

    python -m scripts.demo_model.export TRAINED FOLDER

TRAINED is the folder that training wrote to. FOLDER gets `vision.safetensors`,
`adapters.safetensors`, `adapter_config.json`, `config.json` (what a config needs beside the text
model's), and the training's log and losses.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

PARTS = {
    "eyes.dino.": "vision_backbone.featurizer.",
    "eyes.siglip.": "vision_backbone.fused_featurizer.",
    "eyes.projector.": "projector.",
}


def export(trained: Path, folder: Path, rank: int = 8, scale: float = 2.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(trained / "weights.safetensors")
    vision = {
        new + name.removeprefix(old): tensor
        for name, tensor in weights.items()
        for old, new in PARTS.items()
        if name.startswith(old)
    }
    shape = config_fields(vision)
    # Features come from the last block but one. The last block computes nothing that is used; one
    # small tensor of it tells the loader how deep the tower is.
    for part in list(PARTS.values())[:2]:
        width = vision[f"{part}blocks.0.norm1.weight"]
        vision[f"{part}blocks.{_depth(vision, part)}.norm1.weight"] = np.ones_like(width)
    save_file(vision, folder / "vision.safetensors", {"format": "pt"})
    _write(folder / "config.json", shape)

    lora = {n.removeprefix("lora."): t for n, t in weights.items() if n.startswith("lora.")}
    save_file(lora, folder / "adapters.safetensors", {"format": "mlx"})
    keys = sorted({name.split(".", 3)[3].rsplit(".", 1)[0] for name in lora})
    adapter = {
        "fine_tune_type": "lora",
        "num_layers": 1 + max(int(name.split(".")[2]) for name in lora),
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
    }
    _write(folder / "adapter_config.json", adapter)
    shutil.copy(trained / "log.json", folder)
    from scripts.demo_model.progress import plot

    plot(folder / "log.json", folder / "losses.png")


def config_fields(vision: dict[str, np.ndarray]) -> dict[str, Any]:
    """The fields that a Moxin config has beside `text_config`."""
    dino, siglip = (vision[f"{part}pos_embed"] for part in list(PARTS.values())[:2])
    patch = vision["vision_backbone.featurizer.patch_embed.proj.weight"].shape[-1]
    side = round(dino.shape[1] ** 0.5) * patch
    return {
        "model_type": "prismatic",
        "architectures": ["PrismaticForConditionalGeneration"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "use_fused_vision_backbone": True,
        "timm_model_ids": [
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_so400m_patch14_siglip_224",
        ],
        "image_sizes": [side, side],
        "image_resize_strategy": "resize-naive",
        "dino_num_heads": dino.shape[-1] // 64,
        "siglip_num_heads": siglip.shape[-1] // 64,
        "image_token_index": 0,
    }


def _depth(vision: dict[str, np.ndarray], part: str) -> int:
    blocks = [n.removeprefix(part).split(".") for n in vision if n.startswith(part + "blocks.")]
    return 1 + max(int(number) for _, number, *_ in blocks)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
