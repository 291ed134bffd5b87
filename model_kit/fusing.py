"""A checkpoint with a low-rank adapter made part of its weights."""

from pathlib import Path
from typing import Any

from model_kit.adapters import apply_adapter
from model_kit.opened import open_checkpoint
from model_kit.save import SHARD_BYTES, Progress, check_target, save_checkpoint


def fuse(
    source: str | Path,
    adapter: str | Path,
    target: str | Path,
    *,
    dequantize: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> int:
    """Write `source` with `adapter` fused, a tensor at a time; return the bytes of its weights.

    As `mlx_lm.fuse` computes it: what is quantized is quantized again, or with `dequantize` the
    whole decoder is left unquantized. `source` and `adapter` are only read. Raises `AdapterError`,
    `SaveError`, or another `CheckpointError`.
    """
    target = check_target(Path(source), Path(target), overwrite)
    opened = open_checkpoint(Path(source))
    decoder, config = opened.decoder, opened.config.raw
    apply_adapter(decoder, adapter, opened.config.decoder_prefixes).fuse(decoder, dequantize)
    if dequantize:
        from mlx_lm.utils import dequantize_model

        dequantize_model(decoder)
        towers = any(name.endswith(".scales") for name in opened.eyes)
        config = _without_decoder(config, set(opened.names.values()), towers)
    tensors, folder = opened.tensors(), opened.folder
    del opened, decoder  # or they would hold every tensor that is computed
    return save_checkpoint(
        folder,
        target,
        config,
        tensors,
        overwrite=overwrite,
        shard_bytes=shard_bytes,
        stage="fuse",
        progress=progress,
    )


def _without_decoder(config: dict[str, Any], layers: set[str], towers: bool) -> dict[str, Any]:
    """config.json of a checkpoint whose decoder is not quantized any more."""
    kept = {}
    for name, value in config.items():
        if name in ("quantization", "quantization_config"):
            if not towers:
                continue
            value = {layer: own for layer, own in value.items() if layer not in layers}
        kept[name] = value
    return kept
