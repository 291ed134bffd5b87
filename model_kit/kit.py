"""A checkpoint folder becomes a `ModelKit`: everything a conversation needs of a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.nn as nn

from model_kit.config import CheckpointConfig, read_config
from model_kit.decoder import Progress, build_decoder, context_limit, read_into_memory
from model_kit.report import LoadReport, make_report
from model_kit.tokenizer import load_tokenizer
from vision_add_ons.base import VisionAddOn

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


@dataclass
class ModelKit:
    """A loaded model. It belongs to the thread that loaded it: MLX streams belong to threads."""

    folder: Path
    config: CheckpointConfig
    tokenizer: "TokenizerWrapper"
    text_model: nn.Module | None
    """mlx-lm's decoder; None after a load with `vocab_only`."""
    add_on: VisionAddOn | None
    """The family's eyes; None for a text model, or after a load with `decoder_only`."""
    max_context: int | None
    """Positions that this model serves; None for no known limit."""
    report: LoadReport

    @property
    def vocab_size(self) -> int:
        """How many logits the decoder gives."""
        return int(self.config.decoder.get("vocab_size") or len(self.tokenizer))

    @property
    def quantizable_kv_width(self) -> int | None:
        """The head size that a quantized KV cache's groups must divide; None if it has none."""
        if self.text_model is None or not all(
            hasattr(c, "to_quantized") for c in self.make_cache()
        ):
            return None
        from mlx_lm.models.cache import RotatingKVCache

        cfg = self.config.decoder
        if any(isinstance(c, RotatingKVCache) for c in self.make_cache()):
            return None  # mlx-lm has not implemented it
        return int(cfg.get("head_dim") or cfg["hidden_size"] // cfg["num_attention_heads"])

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
) -> ModelKit:
    """Load a checkpoint folder.

    `decoder_only` leaves the vision half out; `vocab_only` loads config and tokenizer and no
    weights. `progress(stage, done, total)` is called from this thread. Raises a subclass of
    `CheckpointError`.
    """
    kit = _build(Path(folder).expanduser(), decoder_only=decoder_only, vocab_only=vocab_only)
    if kit.text_model is not None:
        read_into_memory(kit.text_model, "load decoder", progress)
    if kit.add_on is not None:
        for name, part in vars(kit.add_on).items():
            if isinstance(part, nn.Module):
                read_into_memory(part, f"load {name}", progress)
    return kit


def inspect_checkpoint(folder: str | Path) -> LoadReport:
    """What loading would do and find, without reading the weights themselves.

    Raises what loading would raise: a subclass of `CheckpointError`.
    """
    return _build(Path(folder).expanduser()).report


def _build(folder: Path, *, decoder_only: bool = False, vocab_only: bool = False) -> ModelKit:
    """Everything but reading the weights: MLX reads an array when it is first evaluated."""
    config = read_config(folder, decoder_only=decoder_only or vocab_only)
    report = make_report(folder, config)
    text_model = add_on = None
    if not vocab_only:
        text_model = build_decoder(folder, config)
        limit = context_limit(text_model, config)
        if limit != config.max_context:
            config.max_context = report.max_context = limit
            report.notes.append(
                f"context limited to {limit} tokens: mlx-lm's {config.decoder_type} does not "
                "apply the sliding window that the checkpoint asks for beyond that"
            )
    if config.add_on is not None and not (vocab_only or decoder_only):
        add_on = config.add_on(folder, config.raw)
    tokenizer = load_tokenizer(folder, config)
    return ModelKit(folder, config, tokenizer, text_model, add_on, config.max_context, report)
