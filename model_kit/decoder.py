"""The text decoder: an mlx-lm model class, loaded by mlx-lm from our reading of the config."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from model_kit.config import CheckpointConfig
from model_kit.decoder_modules import decoder_module
from model_kit.names import decoder_name
from vision_add_ons.errors import BrokenWeights, MissingWeight
from vision_add_ons.quantized import check_scales
from vision_add_ons.safetensors_files import evaluate
from vision_add_ons.weights import check_weights, parameters

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and its total."""


def select_decoder(
    weights: dict[str, mx.array], prefixes: Mapping[str, str | None]
) -> dict[str, mx.array]:
    """The decoder's tensors under the names mlx-lm uses. Raises `MissingWeight` for none."""
    names = ((decoder_name(name, prefixes), w) for name, w in weights.items())
    chosen = {name: w for name, w in names if name is not None}
    if not chosen:
        wanted = " or ".join(prefix for prefix, own in prefixes.items() if own is not None)
        raise MissingWeight(f"no weight name starts with {wanted}, so there is no text decoder")
    return chosen


def _model_classes(
    config: CheckpointConfig, weights_of_checkpoint: dict[str, mx.array]
) -> tuple[type[nn.Module], type]:
    """mlx-lm's classes for the decoder, told to read our config and to name what is wrong."""
    module = decoder_module(config.decoder_type)
    prefix = next((p for p, own in config.decoder_prefixes.items() if p and own == ""), "")

    class Decoder(module.Model):  # type: ignore[name-defined]
        def sanitize(self, _: dict[str, mx.array]) -> dict[str, mx.array]:
            # mlx-lm hands over every model*.safetensors that lies in the folder; which of them
            # count, and for which tensors, is the index's to say.
            weights = select_decoder(weights_of_checkpoint, config.decoder_prefixes)
            # This class lives as long as the model: it must not hold what sanitize replaces.
            weights_of_checkpoint.clear()
            if hasattr(super(), "sanitize"):
                weights = super().sanitize(weights)
            check_scales(self, weights, where=prefix)
            return weights

        def load_weights(self, weights: Any, strict: bool = True) -> nn.Module:
            weights = dict(weights)
            check_weights(self, weights, where=prefix)
            own = parameters(self)
            return super().load_weights([(n, w) for n, w in weights.items() if n in own])

    class DecoderArgs:
        @staticmethod
        def from_dict(_: dict[str, Any]) -> Any:
            # Only the decoder's part counts: mlx-lm hands over the whole config.json, whose
            # top-level fields may belong to the vision half.
            fields = dict(config.decoder)
            if "lm_head.weight" in select_decoder(weights_of_checkpoint, config.decoder_prefixes):
                # A head of its own counts, as in transformers; mlx-lm would drop it.
                fields["tie_word_embeddings"] = False
            elif config.decoder_type == "gemma3_text" and fields["tie_word_embeddings"] is False:
                # mlx-lm's would tie without a word what others report as missing.
                raise MissingWeight(
                    "the checkpoint lacks lm_head.weight, and tie_word_embeddings is false"
                )
            return module.ModelArgs.from_dict(fields)

    return Decoder, DecoderArgs


def build_decoder(
    folder: Path, config: CheckpointConfig, weights: dict[str, mx.array]
) -> nn.Module:
    """The text decoder of a checkpoint folder, its weights not yet read.

    `weights` are the folder's, by `read_weights`; the dictionary is emptied on the way.
    Raises `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape`, and whatever
    mlx-lm's classes trip over in a config that makes no sense.
    """
    from mlx_lm.utils import load_model

    overrides = {"quantization": config.quantization} if config.quantization else None
    model, _ = load_model(
        folder,
        lazy=True,
        strict=False,  # ours is stricter, and finds shards by any name
        model_config=overrides,
        get_model_classes=lambda **_: _model_classes(config, weights),
    )
    return model


def read_into_memory(module: nn.Module, stage: str, progress: Progress | None) -> None:
    """Evaluate a lazily loaded module, a part at a time so that progress can be told.

    Raises `BrokenWeights`, and what `progress` raises.
    """
    arrays = list(parameters(module).values())
    total = sum(a.nbytes for a in arrays)
    batch: list[mx.array] = []
    done = batch_bytes = 0
    for array in arrays:
        batch.append(array)
        batch_bytes += array.nbytes
        if batch_bytes >= max(total // 50, 1 << 24):
            _read(batch)
            done += batch_bytes
            batch, batch_bytes = [], 0
            if progress:
                progress(stage, done, total)
    _read(batch)
    if progress:
        progress(stage, total, total)


def _read(arrays: list[mx.array]) -> None:
    try:
        evaluate(*arrays)
    except RuntimeError as error:  # a file that has changed since its header was read, say
        raise BrokenWeights(f"the weights cannot be read on: {error}") from error


def context_limit(model: nn.Module, config: CheckpointConfig) -> int | None:
    """How many positions this decoder serves exactly; None for no known limit.

    A sliding window that mlx-lm's class does not apply changes nothing within the window, so
    the window is the limit there.
    """
    from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

    window = config.decoder.get("sliding_window")
    in_use = config.decoder.get("use_sliding_window", True)
    limits = [config.max_context]
    if isinstance(window, int) and window > 0 and in_use:
        caches = make_prompt_cache(model)
        applied = getattr(model, "applies_sliding_window", False)
        if not applied and not any(isinstance(c, RotatingKVCache) for c in caches):
            limits.append(window)
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None
