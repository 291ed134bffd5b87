"""A checkpoint folder becomes a `ModelKit`: everything a conversation needs of a model."""

import hashlib
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.nn as nn

from model_kit.adapters import Adapter, apply_adapter
from model_kit.blame import following, naming_a_text_half, running
from model_kit.config import CheckpointConfig, read_config
from model_kit.decoder import Progress, build_decoder, context_limit, read_into_memory
from model_kit.decoder_modules import decoder_module_name
from model_kit.fingerprint import fingerprint
from model_kit.report import LoadReport, make_report
from model_kit.schemes import check_tensors
from model_kit.tokenizer import check_tokenizer, cover_vocabulary, load_tokenizer
from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import (
    AdapterError,
    BrokenConfig,
    BrokenTokenizer,
    BrokenWeights,
    CheckpointNotFound,
    UnsupportedCheckpoint,
)
from vision_add_ons.libraries import import_library, undisturbed
from vision_add_ons.weights import read_weights

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


@dataclass
class ModelKit:
    """A loaded model. It belongs to the thread that loaded it: MLX streams belong to threads."""

    folder: Path
    """Where the checkpoint lies."""
    config: CheckpointConfig
    """config.json as it was understood."""
    tokenizer: "TokenizerWrapper"
    """mlx-lm's, with every end-of-text id and a chat template."""
    text_model: nn.Module | None
    """mlx-lm's decoder; None after a load with `vocab_only`."""
    add_on: VisionAddOn | None
    """The family's eyes; None for a text model, or after a load with `decoder_only`."""
    max_context: int | None
    """Positions that this model serves; None for no known limit."""
    report: LoadReport
    """What was loaded, and what had to be assumed."""
    checkpoint_fingerprint: str = ""
    """What tells the checkpoint from others; see `model_kit.fingerprint`. Empty until loaded."""
    adapter: Adapter | None = None
    """The low-rank adapter that the decoder computes with."""

    @property
    def fingerprint(self) -> str:
        """What tells this model, its adapter included, from others."""
        if self.adapter is None:
            return self.checkpoint_fingerprint
        return hashlib.sha256(
            (self.checkpoint_fingerprint + self.adapter.digest).encode()
        ).hexdigest()

    def use_adapter(self, folder: str | os.PathLike[str] | None) -> None:
        """Put an adapter in mlx-lm's format on the decoder, in place of one that is there.

        None takes it off. Raises `AdapterError`; then all is as it was.
        """
        if self.text_model is None:
            raise AdapterError("this model was loaded with vocab_only: it has no decoder to adapt")
        before = self.adapter
        self.put_adapter(None)
        if folder is None:
            return
        try:
            self.adapter = apply_adapter(self.text_model, folder, self.config.decoder_prefixes)
        except BaseException:
            self.put_adapter(before)
            raise

    def put_adapter(self, adapter: Adapter | None) -> None:
        """Put an adapter of this decoder, which was on it before, in place of one that is there."""
        assert self.text_model is not None
        if self.adapter is not None:
            self.adapter.remove(self.text_model)
        self.adapter = adapter
        if adapter is not None:
            adapter.put(self.text_model)

    @cached_property
    def vocab_size(self) -> int:
        """How many logits the decoder gives."""
        return int(self.config.decoder.get("vocab_size") or len(self.tokenizer))

    @property
    def quantizable_kv_width(self) -> int | None:
        """The head size that a quantized KV cache's groups must divide; None if it has none."""
        from mlx_lm.models.cache import KVCache

        # For other caches mlx-lm has not implemented it, nor for the attention of Gemma 2, nor for
        # the layers of Gemma 4 that share another's keys.
        if self.config.decoder_type in ("gemma2", "gemma4_text", "gemma4_unified_text"):
            return None
        if self.text_model is None or any(type(c) is not KVCache for c in self.make_cache()):
            return None
        cfg = self.config.decoder
        return int(cfg.get("head_dim") or cfg["hidden_size"] // cfg["num_attention_heads"])

    @property
    def merges(self) -> bool:
        """Whether its KV caches can be those of several answers that are decoded together."""
        return self.text_model is not None and not self._unmerged

    @property
    def _unmerged(self) -> list[str]:
        """The types of its KV caches that mlx-lm has no batch of."""
        return sorted({type(c).__name__ for c in self.make_cache() if not hasattr(c, "merge")})

    @property
    def _at_once(self) -> str:
        if self.text_model is None:
            return "no answers"
        if not self.merges:
            return f"one answer: {', '.join(self._unmerged)} cannot be merged"
        alone = "" if self.quantizable_kv_width is None else "; one by one those with kv_bits"
        return f"several answers (parallel=N){alone}"

    def make_cache(self) -> list[Any]:
        """Fresh KV caches, one per layer, of the types that the decoder itself chooses."""
        from mlx_lm.models.cache import make_prompt_cache

        return make_prompt_cache(self.text_model)


def load_model_kit(
    folder: str | Path,
    *,
    decoder_only: bool = False,
    vocab_only: bool = False,
    progress: Progress | None = None,
    add_on: type[VisionAddOn] | None = None,
    group: Any = None,
) -> ModelKit:
    """Load a checkpoint folder.

    `decoder_only` leaves the vision half out; `vocab_only` loads config and tokenizer and no
    weights. `add_on` serves the checkpoint in place of the add-on that the registry names.
    `progress(stage, done, total)` is called from this thread. Raises a subclass of
    `CheckpointError`.
    """
    if progress:
        progress("open checkpoint", 0, 1)
    kit = open_model_kit(folder, decoder_only=decoder_only, vocab_only=vocab_only, add_on=add_on)
    if group is not None and kit.text_model is not None:
        from model_kit.sharding import shard

        shard(kit.text_model, kit.config, group)
    if kit.text_model is not None:
        with following(kit.folder, BrokenWeights, "the weights cannot be read"):
            kit.checkpoint_fingerprint = fingerprint(kit.folder, kit.config.add_on)
        read_into_memory(kit.text_model, "load decoder", progress)
    if kit.add_on is not None:
        for name, part in vars(kit.add_on).items():
            if isinstance(part, nn.Module):
                read_into_memory(part, f"load {name}", progress)
    return kit


def inspect_checkpoint(folder: str | Path, *, decoder_only: bool = False) -> LoadReport:
    """What loading would do and find, without reading the weights themselves.

    Raises what loading would raise: a subclass of `CheckpointError`.
    """
    return open_model_kit(folder, decoder_only=decoder_only).report


def open_model_kit(
    folder: str | Path,
    *,
    decoder_only: bool = False,
    vocab_only: bool = False,
    add_on: type[VisionAddOn] | None = None,
) -> ModelKit:
    """Everything but reading the weights: MLX reads an array when it is first evaluated.

    Raises what `load_model_kit` does.
    """
    import_library("mlx_lm")
    folder = Path(folder)
    text_model = eyes = None
    with following(folder, CheckpointNotFound, "no such folder"):
        folder = folder.expanduser()
        folder.is_dir()
    why = "config.json describes no model that can be built"
    with undisturbed(), following(folder, BrokenConfig, why):
        blind = decoder_only or vocab_only
        with nullcontext() if blind else naming_a_text_half(folder, add_on):
            config = read_config(folder, decoder_only=blind, add_on=add_on)
        check_tokenizer(folder)
        weights = {} if vocab_only else read_weights(folder)
        check_tensors(folder, decoder_module_name(config.decoder_type), weights)
        report = make_report(folder, config, weights, decoder_only)
        if not vocab_only:
            text_model = build_decoder(folder, config, weights)
            limit = context_limit(text_model, config)
            if limit != config.max_context:
                config.max_context = report.max_context = limit
                report.notes.append(
                    f"context limited to {limit} tokens: mlx-lm's {config.decoder_type} does not "
                    "apply the sliding window that the checkpoint asks for beyond that"
                )
        if config.add_on is not None and not blind:
            assert text_model is not None
            _check_embeddings(text_model, config)
            with naming_a_text_half(folder, config.add_on), running(config.add_on):
                eyes = config.add_on(folder, config.raw)
                eyes.prepare_decoder(text_model)
                report.pictures = eyes.picture_limits()
    why = "the tokenizer cannot be loaded; it needs a tokenizer.json or a tokenizer.model"
    with undisturbed(), following(folder, BrokenTokenizer, why):
        tokenizer = load_tokenizer(folder, config)
        tokenizer.encode("Some files only fail when they are used.")
        cover_vocabulary(tokenizer, int(config.decoder.get("vocab_size") or 0))
    kit = ModelKit(folder, config, tokenizer, text_model, eyes, config.max_context, report)
    report.at_once = kit._at_once
    return kit


def _check_embeddings(text_model: nn.Module, config: CheckpointConfig) -> None:
    from mlx_lm.utils import does_model_support_input_embeddings

    if not does_model_support_input_embeddings(text_model):
        raise UnsupportedCheckpoint(
            f"mlx-lm's {config.decoder_type} takes no input_embeddings, so no picture can reach "
            "it; load with decoder_only=True (on the command line --decoder-only) for text alone"
        )
