"""A decoder's share of its weights on each of several ranks, by mlx-lm's own `shard`."""

from typing import Any

import mlx.nn as nn

from model_kit.config import CheckpointConfig
from vision_add_ons.errors import UnsupportedCheckpoint


def check_shards(model: nn.Module, config: CheckpointConfig, size: int) -> None:
    """Raises `UnsupportedCheckpoint` for a decoder that cannot be held by so many ranks."""
    if not hasattr(model, "shard"):
        raise UnsupportedCheckpoint(
            f"mlx-lm's {config.decoder_type} cannot be held by several ranks; launch one process"
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = config.decoder.get(name)
        if isinstance(heads, int) and heads % size:
            raise UnsupportedCheckpoint(
                f"{size} ranks cannot share this model: its {name} is {heads}; launch a number of "
                "processes that divides it"
            )


def shard(model: Any, config: CheckpointConfig, group: Any) -> None:
    """Keep this rank's share of a decoder whose weights are not read yet.

    Raises as `check_shards` does.
    """
    check_shards(model, config, group.size())
    model.shard(group)
