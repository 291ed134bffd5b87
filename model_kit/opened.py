"""A checkpoint taken apart into tensors that are not read yet, to be changed and written again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from model_kit.config import CheckpointConfig
from model_kit.kit import open_model_kit
from model_kit.names import decoder_name
from vision_add_ons.weights import parameters, read_weights


@dataclass
class OpenedCheckpoint:
    """`decoder` may be changed; `tensors` gives what there is then, by the checkpoint's names."""

    folder: Path
    config: CheckpointConfig
    decoder: nn.Module
    chat_template: str | None
    names: dict[str, str]
    """The checkpoint's name of each of the decoder's layers that it holds, by the decoder's own."""
    eyes: dict[str, mx.array] = field(default_factory=dict)
    """What is not the decoder's, by the checkpoint's names."""

    def name(self, layer: str) -> str:
        """The checkpoint's name of a layer of the decoder."""
        if layer in self.names:
            return self.names[layer]
        # Layers that mlx-lm made of several: by the prefix that the others have.
        for own, there in self.names.items():
            prefix = there.removesuffix(own)
            if prefix + own == there:
                return prefix + layer
        return layer

    def tensors(self, decoder_only: bool = False) -> dict[str, mx.array]:
        """All tensors, lazily; those of the decoder alone by its own names."""
        tensors = {}
        for name, array in parameters(self.decoder).items():
            layer, dot, last = name.rpartition(".")
            tensors[name if decoder_only else self.name(layer) + dot + last] = array
        return tensors if decoder_only else tensors | self.eyes


def open_checkpoint(folder: Path, decoder_only: bool = False) -> OpenedCheckpoint:
    """Open a checkpoint that loads, or whose text half does with `decoder_only`.

    Raises a subclass of `CheckpointError`.
    """
    kit = open_model_kit(folder, decoder_only=decoder_only)
    assert kit.text_model is not None
    weights = read_weights(kit.folder)
    prefixes: Mapping[str, str | None] = kit.config.decoder_prefixes
    names, eyes = {}, {}
    for name, array in weights.items():
        own = decoder_name(name, prefixes)
        if own is None:
            eyes[name] = array
        else:
            names[own.rpartition(".")[0]] = name.rpartition(".")[0]
    template = kit.tokenizer.chat_template if kit.tokenizer.has_chat_template else None
    return OpenedCheckpoint(kit.folder, kit.config, kit.text_model, template, names, eyes)


def decoder_config(opened: OpenedCheckpoint) -> dict[str, Any]:
    """A config.json for the decoder alone, as its mlx-lm class reads it."""
    from transformers import PretrainedConfig

    # What every config of transformers has says nothing about this model.
    usual = PretrainedConfig().to_dict()
    config = {n: v for n, v in opened.config.decoder.items() if n not in usual or v != usual[n]}
    config["model_type"] = opened.config.decoder_type
    config["tie_word_embeddings"] = "lm_head" not in opened.decoder
    for name in ("bos_token_id", "pad_token_id"):
        if name in opened.config.raw:
            config.setdefault(name, opened.config.raw[name])
    config["eos_token_id"] = sorted(opened.config.eos_token_ids) or None
    return {name: value for name, value in config.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list | dict)
