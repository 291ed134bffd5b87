"""The text model and the exported eyes become one ordinary Moxin folder.

    python -m scripts.demo_model.assemble TEXT EXPORTED FOLDER [--adapter]

The decoder's changes are added to its weights; with `--adapter`, the decoder stays as it is and
the adapter's two files stand in the folder's `adapter`, for whoever loads adapters.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def assemble(text: Path, exported: Path, folder: Path, fuse: bool = True) -> None:
    """Weights in the dtype of the text model's, which numpy must know (float32 or float16)."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder = load_file(text / "model.safetensors")
    dtype = decoder["model.norm.weight"].dtype
    if fuse:
        add(decoder, exported)
    else:
        (folder / "adapter").mkdir(exist_ok=True)
        for name in ("adapters.safetensors", "adapter_config.json"):
            shutil.copy(exported / name, folder / "adapter")
    vision = load_file(exported / "vision.safetensors")
    weights = {name: tensor.astype(dtype) for name, tensor in vision.items()}
    weights |= {f"language_model.{name}": tensor for name, tensor in decoder.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    config = json.loads((exported / "config.json").read_text())
    config["text_config"] = json.loads((text / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        if (text / name).exists():
            shutil.copy(text / name, folder)


def add(decoder: dict[str, np.ndarray], exported: Path) -> None:
    """Add the adapter's low-rank products, computed in float32, to the decoder's weights."""
    lora = load_file(exported / "adapters.safetensors")
    settings = json.loads((exported / "adapter_config.json").read_text())
    scale = settings["lora_parameters"]["scale"]
    for name in [name for name in lora if name.endswith(".lora_a")]:
        base = name.removesuffix(".lora_a")
        low, high = (lora[f"{base}.lora_{x}"].astype(np.float32) for x in "ab")
        weight = decoder[f"{base}.weight"]
        change = scale * (low @ high).T
        decoder[f"{base}.weight"] = (weight.astype(np.float32) + change).astype(weight.dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("text", "exported", "folder"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--adapter", action="store_true")
    options = parser.parse_args()
    assemble(options.text, options.exported, options.folder, not options.adapter)
