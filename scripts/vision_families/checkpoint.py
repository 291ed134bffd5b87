"""A family's model as mlx-vlm builds it, and the same towers as a checkpoint."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models

from vision_add_ons.mlx_vlm_modules import import_mlx_vlm

from .family import Family, Fields

PARTS = ("text", "vision", "audio")


def mlx_vlm_model(name: str, config: Fields) -> Any:
    """mlx-vlm's model of this config, with random weights."""
    module = import_mlx_vlm(name)
    model_config = module.ModelConfig.from_dict(config)
    for part in PARTS:
        made = getattr(model_config, f"{part}_config", None)
        if isinstance(made, dict):
            part_class = getattr(module, f"{part.title()}Config")
            setattr(model_config, f"{part}_config", part_class.from_dict(made))
    model = module.Model(model_config)
    model.eval()
    mx.eval(model.parameters())
    return model


def write_checkpoint(
    folder: Path, family: Family, config: Fields, settings: Fields, model: Any
) -> None:
    """A checkpoint of the towers of mlx-vlm's model."""
    weights = dict(tree_flatten(model.parameters()))
    towers = {n: w for n, w in weights.items() if not n.startswith("language_model.")}
    mx.save_safetensors(str(folder / "model.safetensors"), towers)
    processor = {}
    if config["model_type"] == "internvl":
        side, patch = (config["vision_config"][name] for name in ("image_size", "patch_size"))
        processor["image_seq_length"] = (side // patch // 2) ** 2
    for file, content in (
        ("config.json", config),
        ("preprocessor_config.json", settings),
        ("processor_config.json", processor),
    ):
        (folder / file).write_text(json.dumps(content))
    words = Tokenizer(models.WordLevel({"<unk>": 0, **family.tokens}, unk_token="<unk>"))
    words.add_special_tokens(list(family.tokens))
    words.save(str(folder / "tokenizer.json"))
