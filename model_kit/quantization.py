"""Quantized checkpoints: linear layers in few bits, everything else as it was."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from model_kit.opened import OpenedCheckpoint, decoder_config, open_checkpoint
from model_kit.save import SHARD_BYTES, Progress, check_target, save_checkpoint
from vision_add_ons.errors import OptionError, UnsupportedCheckpoint

# mlx's modes: the group sizes and bits that each allows, its default first.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}

Choose = Callable[[str, nn.Module], bool | dict[str, Any]]
"""Whether to quantize a layer of the decoder, or how: mlx-lm's `quant_predicate`."""


@dataclass(frozen=True)
class Quantized:
    """What `quantize` made."""

    folder: Path
    """The new checkpoint."""
    layers: int
    """Layers that were quantized."""
    left: tuple[str, ...]
    """Linear layers that were left as they are: their width is no multiple of the group size."""
    nbytes: int
    """Bytes of its weights."""
    source_nbytes: int
    """Bytes of the source's weights."""


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    towers_bits: int | None = None,
    embeddings: bool = False,
    decoder_only: bool = False,
    choose: Choose | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a checkpoint folder into another one, a tensor at a time.

    The decoder's linear layers and `lm_head` are quantized as `mlx_lm.convert` does it, wherever
    their width is a multiple of `group_size`; the embeddings with `embeddings`. `bits` and
    `group_size` are by default the mode's. `towers_bits` quantizes the linear layers of towers and
    projector too, in groups as large, or of 64 where the mode is not affine. `choose(name, layer)`
    decides for single layers of the decoder, by default what its mlx-lm class advises; its choices
    stand in config.json as mlx-lm writes them. `decoder_only` makes a text checkpoint, which
    mlx-lm alone loads too, if it knows the type.

    `source` is only read. Raises `OptionError`, `SaveError`, or a subclass of `CheckpointError`.
    """
    whole = _settings(mode, bits, group_size)
    tower = None
    if towers_bits is not None:
        tower = _settings("affine", towers_bits, group_size if mode == "affine" else None)
    target = check_target(Path(source), Path(target), overwrite)
    opened = open_checkpoint(Path(source), decoder_only)
    if opened.config.quantization or "quantization_config" in opened.config.raw:
        raise UnsupportedCheckpoint(
            f"{opened.folder} is quantized already; quantize the checkpoint that it was made of"
        )
    if tower is not None and (decoder_only or not opened.eyes):
        raise OptionError("towers_bits is for the towers of a vision checkpoint; leave it out")
    source_nbytes = sum(tensor.nbytes for tensor in opened.tensors(decoder_only).values())
    entry, left = _quantize_decoder(opened, whole, embeddings, choose)
    if not decoder_only:
        entry = {opened.name(k) if isinstance(v, dict) else k: v for k, v in entry.items()}
        if tower is not None:
            more, narrow = _quantize_towers(opened, tower)
            entry |= more
            left += narrow
    base = decoder_config(opened) if decoder_only else opened.config.raw
    config = {**base, "quantization": entry, "quantization_config": entry}
    texts = {}
    if decoder_only and opened.chat_template is not None:
        texts["chat_template.jinja"] = opened.chat_template
    tensors, folder = opened.tensors(decoder_only), opened.folder
    layers = sum(name.endswith(".scales") for name in tensors)
    del opened  # or it would hold every tensor that is computed
    nbytes = save_checkpoint(
        folder,
        target,
        config,
        tensors,
        texts=texts,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
        stage="quantize",
        progress=progress,
    )
    return Quantized(target, layers, tuple(left), nbytes, source_nbytes)


def _settings(mode: str, bits: int | None, group_size: int | None) -> dict[str, Any]:
    if not isinstance(mode, str) or mode not in MODES:
        raise OptionError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    settings: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": mode}
    for name, allowed in zip(("group_size", "bits"), MODES[mode], strict=True):
        settings[name] = allowed[0] if settings[name] is None else settings[name]
        if type(settings[name]) is not int or settings[name] not in allowed:
            choices = ", ".join(map(str, sorted(allowed)))
            raise OptionError(f"{name} of {mode} must be {choices}, not {settings[name]!r}")
    return settings


def _own_settings(chosen: Any, whole: dict[str, Any]) -> dict[str, Any]:
    """What `choose` wants for one layer; affine, as for MLX, where it tells no mode."""
    if not isinstance(chosen, dict) or set(chosen) - set(whole):
        raise OptionError(
            f"a layer's choice is a bool or a dictionary of {', '.join(whole)}, not {chosen!r:.80}"
        )
    mode = chosen.get("mode", "affine")
    rest = whole if mode == whole["mode"] else {}
    bits, group_size = (chosen.get(n, rest.get(n)) for n in ("bits", "group_size"))
    return _settings(mode, bits, group_size)


def _quantize_decoder(
    opened: OpenedCheckpoint, whole: dict[str, Any], embeddings: bool, choose: Choose | None
) -> tuple[dict[str, Any], list[str]]:
    """Quantize, lazily; config.json's entry by the decoder's names, and layers too narrow."""
    entry: dict[str, Any] = dict(whole)
    left: list[str] = []
    choose = choose or getattr(opened.decoder, "quant_predicate", None)

    def settings(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(layer, "to_quantized"):
            return False
        if isinstance(layer, nn.Embedding) and not embeddings:
            return False
        chosen = choose(path, layer) if choose is not None else True
        if not chosen:
            return False
        own = whole if chosen is True else _own_settings(chosen, whole)
        if layer.weight.shape[-1] % own["group_size"]:
            left.append(opened.name(path))
            return False
        if own != whole:
            entry[path] = own
        return own

    nn.quantize(opened.decoder, class_predicate=settings)
    return entry, left


def _quantize_towers(
    opened: OpenedCheckpoint, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The same for what is not the decoder's, where add-ons know their layers by other names.

    There a two-dimensional `.weight` is a linear layer, unless it embeds something. A result that
    the add-on could not load is found when `save_checkpoint` tries it.
    """
    entry, left = {}, []
    for name in list(opened.eyes):
        layer, _, last = name.rpartition(".")
        weight = opened.eyes[name]
        if last != "weight" or weight.ndim != 2 or re.search("embed|position", layer):
            continue
        if not mx.issubdtype(weight.dtype, mx.floating):
            continue
        if weight.shape[-1] % settings["group_size"]:
            left.append(layer)
            continue
        packed = mx.quantize(weight, **settings)
        parts = zip(("weight", "scales", "biases"), packed, strict=True)
        opened.eyes |= {f"{layer}.{part}": array for part, array in parts}
        entry[layer] = settings
    return entry, left
