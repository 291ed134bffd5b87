"""Random adapters, made and saved by mlx-lm."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model


def write_adapter(
    text_folder: Path, target: Path, seed: int, kind: str = "lora", **changes: Any
) -> Path:
    """An adapter for the text model in `text_folder`; `changes` of `lora_parameters`."""
    settings = {"rank": 4, "scale": 3.0, "dropout": 0.0, **changes}
    model, _ = load_model(text_folder)
    model.freeze()
    linear_to_lora_layers(model, 2, settings, use_dora=kind == "dora")
    mx.random.seed(seed)
    tensors = {
        name: array if name.endswith(".m") else 0.1 * mx.random.normal(array.shape)
        for name, array in tree_flatten(model.trainable_parameters())
        if name.endswith(("lora_a", "lora_b", ".m"))
    }
    target.mkdir()
    mx.save_safetensors(str(target / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": settings}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target
