"""A checkpoint under its family's published names, and in another precision."""

import os
from pathlib import Path
from typing import Any

import mlx.core as mx

from model_kit.kit import open_model_kit
from model_kit.save import SHARD_BYTES, Progress, check_target, save_checkpoint
from vision_add_ons.errors import BrokenWeights, OptionError, UnsupportedCheckpoint
from vision_add_ons.weights import read_weights

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Write a checkpoint folder anew, a tensor at a time, and return the bytes of its weights.

    Tensors get the names of the family's published checkpoints (native Prismatic names become
    those of the Hugging Face conversion), and with `dtype` all floating-point ones become
    "float32", "bfloat16" or "float16". `source` is only read. Raises `OptionError`, `SaveError`,
    or a subclass of `CheckpointError`.
    """
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise OptionError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    folder = Path(os.path.expanduser(source))
    target = check_target(folder, Path(target), overwrite)
    config = open_model_kit(folder).config
    if dtype is not None and config.quantization:
        raise UnsupportedCheckpoint(f"{folder} is quantized; convert what it was made of")
    raw = {**config.raw, "model_type": config.model_type}
    if config.add_on is not None:
        raw = config.add_on.published_config(raw)
    tensors = read_weights(folder)
    if config.add_on is not None:
        named = {config.add_on.published_name(name): name for name in tensors}
        if len(named) < len(tensors):
            twice = min(set(tensors) - set(named.values()))
            raise BrokenWeights(f"{folder} holds {twice} under two names")
        tensors = {name: tensors[before] for name, before in named.items()}
    if dtype is not None:
        raw = _with_dtype(raw, dtype)
        for name, tensor in tensors.items():
            if mx.issubdtype(tensor.dtype, mx.floating):
                tensors[name] = tensor.astype(DTYPES[dtype])
    return save_checkpoint(
        folder,
        target,
        raw,
        tensors,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
        stage="convert",
        progress=progress,
    )


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config telling the new precision wherever it told one; transformers 5 says `dtype`."""
    named: dict[str, Any] = {n: dtype for n in ("torch_dtype", "dtype") if n in config}
    halves = {
        name: _with_dtype(value, dtype)
        for name, value in config.items()
        if name in ("text_config", "vision_config") and isinstance(value, dict)
    }
    return {**config, **named, **halves}
