"""Low-rank adapters (LoRA and DoRA) in mlx-lm's format, put on a loaded decoder and taken off."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from model_kit.names import decoder_name
from vision_add_ons.errors import AdapterError, BrokenConfig, BrokenWeights
from vision_add_ons.json_files import read_json
from vision_add_ons.safetensors_files import evaluate, read_safetensors
from vision_add_ons.weights import parameters

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
LEAVES = ("lora_a", "lora_b", "m")
"""What an adapter's layers add to those of the decoder, by mlx-lm's names."""


@dataclass(frozen=True)
class Adapter:
    """An adapter of a decoder. `digest` tells it from others."""

    folder: Path
    digest: str
    own: Mapping[str, nn.Module]
    """The decoder's own layers, by their names."""
    adapted: Mapping[str, nn.Module]
    """What takes their place."""

    def put(self, decoder: nn.Module) -> None:
        """Let the decoder compute with the adapter."""
        decoder.update_modules(tree_unflatten(list(self.adapted.items())))

    def remove(self, decoder: nn.Module) -> None:
        """Give the decoder its own layers back."""
        decoder.update_modules(tree_unflatten(list(self.own.items())))

    def fuse(self, decoder: nn.Module, dequantize: bool = False) -> None:
        """Make the adapter part of the decoder's weights, lazily, as `mlx_lm.fuse` does.

        Quantized layers are quantized again, or with `dequantize` stay as they have become.
        """
        fused = [(name, layer.fuse(dequantize=dequantize)) for name, layer in self.adapted.items()]
        decoder.update_modules(tree_unflatten(fused))


def apply_adapter(
    decoder: nn.Module, folder: str | os.PathLike[str], prefixes: Mapping[str, str | None]
) -> Adapter:
    """Put the adapter in `folder` on a decoder, which must have none.

    `prefixes` are `CheckpointConfig.decoder_prefixes`: adapters that were trained on a whole vision
    checkpoint name the decoder's layers as it does. Raises `AdapterError`; then the decoder is as
    it was.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    if not isinstance(folder, str | os.PathLike):
        raise AdapterError(f"an adapter is a folder, not {type(folder).__name__}")
    folder = Path(os.path.expanduser(os.fsdecode(folder)))
    kind, layers, settings = _read_config(folder)
    own = dict(tree_flatten(decoder.leaf_modules(), is_leaf=nn.Module.is_module))
    try:
        digest = _digest(folder)
        tensors = _read_tensors(folder, prefixes)
        linear_to_lora_layers(decoder, layers, settings, use_dora=kind == "dora")
        _check(decoder, tensors, folder)
        decoder.update(tree_unflatten(list(tensors.items())))
        decoder.eval()
        evaluate(*tensors.values())
        if _digest(folder) != digest:
            raise AdapterError(f"{folder} was written to while it was read; try again")
    except BaseException as error:
        decoder.update_modules(tree_unflatten(list(own.items())))
        if isinstance(error, AdapterError) or not isinstance(error, Exception):
            raise
        message = " ".join(str(error).split())[:200]
        raise AdapterError(
            f"{folder} does not fit this decoder ({type(error).__name__}: {message})"
        ) from error
    now = dict(decoder.named_modules())
    adapted = {name: now[name] for name, layer in own.items() if now[name] is not layer}
    return Adapter(folder, digest, {name: own[name] for name in adapted}, adapted)


def _read_config(folder: Path) -> tuple[str, int, dict[str, Any]]:
    """The kind of adapter, how many of the last layers it covers, and mlx-lm's parameters."""
    for name in (CONFIG, WEIGHTS):
        if not os.path.isfile(folder / name):  # False for impossible names too
            raise AdapterError(
                f"{folder} holds no {name}; give the folder that mlx-lm's training wrote"
            )
    try:
        config = read_json(folder / CONFIG)
    except BrokenConfig as error:
        raise AdapterError(str(error)) from error
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise AdapterError(
            f"{folder / CONFIG}: fine_tune_type {kind!r} is not supported; known are lora and dora"
        )
    layers, settings = config.get("num_layers"), config.get("lora_parameters")
    if type(layers) is not int or not isinstance(settings, dict):
        raise AdapterError(f"{folder / CONFIG} lacks num_layers or lora_parameters")
    rank, scale = settings.get("rank"), settings.get("scale")
    number = type(scale) in (int, float) and math.isfinite(scale)  # type: ignore[arg-type]
    if type(rank) is not int or rank < 1 or not number:
        raise AdapterError(
            f"{folder / CONFIG}: lora_parameters must give rank and scale, not {rank!r:.40} and "
            f"{scale!r:.40}"
        )
    return kind, layers, {"dropout": 0.0, **settings}


def _read_tensors(folder: Path, prefixes: Mapping[str, str | None]) -> dict[str, mx.array]:
    """The adapter's tensors by the decoder's own names."""
    try:
        tensors = read_safetensors(folder / WEIGHTS)
    except BrokenWeights as error:
        raise AdapterError(str(error)) from error
    for name, tensor in tensors.items():
        if not mx.issubdtype(tensor.dtype, mx.floating):
            raise AdapterError(
                f"{folder}: {name} holds {tensor.dtype}, not numbers to compute with"
            )
    # In half precision the product of a fused adapter would be rounded twice.
    return {decoder_name(n, prefixes) or n: t.astype(mx.float32) for n, t in tensors.items()}


def _check(decoder: nn.Module, tensors: dict[str, mx.array], folder: Path) -> None:
    """Refuse tensors that are not exactly those of the decoder's adapted layers."""
    from mlx_lm.tuner.dora import DoRAEmbedding

    for name, layer in decoder.named_modules():
        if isinstance(layer, DoRAEmbedding) and isinstance(layer.embedding, nn.QuantizedEmbedding):
            raise AdapterError(
                f"{folder}: mlx-lm computes no DoRA on quantized embeddings ({name})"
            )
    wanted = {n: a for n, a in parameters(decoder).items() if n.rpartition(".")[2] in LEAVES}
    for name, tensor in tensors.items():
        if name not in wanted:
            raise AdapterError(f"{folder}: the decoder has no place for {name}")
        if tensor.shape != wanted[name].shape:
            raise AdapterError(
                f"{folder}: {name} has shape {tensor.shape}, where the decoder has room for "
                f"{wanted[name].shape}"
            )
    absent = sorted(set(wanted) - set(tensors))
    if absent or not wanted:
        raise AdapterError(f"{folder} lacks {absent[0] if absent else 'layers of this decoder'}")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
