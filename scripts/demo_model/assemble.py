"""The text model and the exported eyes become one ordinary Moxin folder, as set-up makes it.

    python -m scripts.demo_model.assemble TEXT EXPORTED FOLDER

TEXT must hold float32 weights (set-up makes them so where MLX computes on a CPU).
"""

import json
import shutil
import sys
from pathlib import Path

from model_kit.blas import preload_openblas
from model_kit.demo_eyes import give


def assemble(text: Path, exported: Path, folder: Path) -> None:
    """Make `folder` the checkpoint that `exported` in place of the shipped parts would give."""
    preload_openblas()
    import mlx.core as mx

    folder.mkdir(parents=True, exist_ok=True)
    decoder = mx.load(str(text / "model.safetensors"))
    config, weights = give(json.loads((text / "config.json").read_text()), decoder, exported)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        if (text / name).exists():
            shutil.copy(text / name, folder)


if __name__ == "__main__":
    assemble(*map(Path, sys.argv[1:]))
