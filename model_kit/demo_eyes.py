"""Eyes for the demo model: small towers and a projector, and an adapter of the language model.

They were trained together by `scripts/demo_model` and ship in `demo_parts`: tensors in float16
under the names of a Moxin checkpoint, and an adapter in mlx-lm's form.
"""

import json
from pathlib import Path
from typing import Any

PARTS = Path(__file__).with_name("demo_parts")


def give(
    config: dict[str, Any], tensors: dict[str, Any], parts: Path = PARTS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Moxin checkpoint's config and tensors, made of SmolLM2's and of what ships in `parts`.

    `tensors` are MLX arrays in float32 by mlx-lm's names. The adapter is added to them, as mlx-lm's
    `LoRALinear.fuse` does: W + scale * (A B)^T. Nothing is computed yet.
    """
    import mlx.core as mx

    seeing = json.loads((parts / "config.json").read_text(encoding="utf-8"))
    adapter: Any = mx.load(str(parts / "adapters.safetensors"))
    settings = json.loads((parts / "adapter_config.json").read_text(encoding="utf-8"))
    scale = settings["lora_parameters"]["scale"]
    changed: Any = mx.load(str(parts / "vision.safetensors"))
    changed = {name: tensor.astype(mx.float32) for name, tensor in changed.items()}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_a" in adapter:
            a, b = (adapter[f"{layer}.lora_{side}"].astype(mx.float32) for side in "ab")
            tensor = tensor + (scale * (a @ b)).T
        changed[f"language_model.{name}"] = tensor
    return {**seeing, "text_config": config}, changed
