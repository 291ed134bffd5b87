"""Which module implements a decoder: mlx-lm's of its type, or ours where that is not exact."""

import dataclasses
import difflib
import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vision_add_ons.errors import UnknownModelType, UnsupportedCheckpoint
from vision_add_ons.registry import registered

OWN_DECODERS = {
    "gemma": "model_kit.gemma",
    "gemma2": "model_kit.gemma2",
    "gemma3n_text": "model_kit.gemma3n",
    "gemma4_text": "model_kit.gemma4",
    "gemma4_unified_text": "model_kit.gemma4",
    "glm4": "model_kit.glm4",
    "glm4_moe": "model_kit.glm4_moe",
    "mistral": "model_kit.mistral",
    "qwen3_5_moe_text": "model_kit.qwen3_5",
    "qwen3_5_text": "model_kit.qwen3_5",
    "qwen3_moe": "model_kit.qwen3_moe",
}
"""Model types whose mlx-lm class is not exact, is not checked, or takes no embeddings, and the
module with ours."""

# Those whose mlx-lm form was compared with transformers'; others are refused rather than guessed.
# A module of ours may name its own.
EXACT_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def decoder_module_name(model_type: str) -> str:
    """The last part of its name: several model types may share a module."""
    return str(decoder_module(model_type).__name__).rpartition(".")[2]


def decoder_module(model_type: str) -> Any:
    """The module that implements a model type, mostly mlx-lm's. Raises `UnknownModelType`."""
    from mlx_lm.utils import MODEL_REMAPPING

    if model_type in OWN_DECODERS:
        return importlib.import_module(OWN_DECODERS[model_type])
    name = MODEL_REMAPPING.get(model_type, model_type)
    if re.fullmatch(r"[\w-]+", name) and find_spec(f"mlx_lm.models.{name}"):
        try:
            module = importlib.import_module(f"mlx_lm.models.{name}")
        except (ImportError, SystemExit) as error:  # one of them leaves without its own package
            raise UnsupportedCheckpoint(
                f"mlx-lm's {name} needs a package that is not installed"
            ) from error
        if hasattr(module, "ModelArgs"):
            return module
    known = _decoder_types()
    near = difflib.get_close_matches(model_type, known | set(registered()), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnknownModelType(
        f"unknown model type {model_type!r:.80}{hint} Known with pictures: "
        f"{', '.join(sorted(registered()))}; known for text: {', '.join(sorted(known))}"
    )


def model_fields(model_type: str) -> set[str]:
    """The config fields that the mlx-lm class of a model type reads."""
    return {f.name for f in dataclasses.fields(decoder_module(model_type).ModelArgs)}


def scales_rope(model_type: str) -> bool:
    """Whether the class builds ropes by mlx-lm's function for all types; else by theta alone."""
    return hasattr(decoder_module(model_type), "initialize_rope")


def exact_rope_types(model_type: str) -> tuple[str, ...]:
    """The types of ropes by which the class turns as transformers does."""
    types: tuple[str, ...] = EXACT_ROPE_TYPES
    return getattr(decoder_module(model_type), "EXACT_ROPE_TYPES", types)


def _decoder_types() -> frozenset[str]:
    """The model types that mlx-lm has a class for: some of its modules are only helpers."""
    import mlx_lm.models
    from mlx_lm.utils import MODEL_REMAPPING

    files = [file for folder in mlx_lm.models.__path__ for file in Path(folder).glob("*.py")]
    models = {file.stem for file in files if b"class ModelArgs" in file.read_bytes()}
    return frozenset(models | {t for t, module in MODEL_REMAPPING.items() if module in models})
