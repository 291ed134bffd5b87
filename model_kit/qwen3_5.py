"""The text half of Qwen3.5 and its mixture-of-experts form, by mlx-lm's qwen3_5.py.

mlx-lm's own class takes the config of the whole model, so that nothing of the decoder's would be
checked; this one takes the decoder's, and its weights by the names that they have there.
"""

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3_5

from model_kit.experts import experts_joined
from vision_add_ons.errors import UnsupportedCheckpoint


@dataclass
class ModelArgs(qwen3_5.TextModelArgs):
    layer_types: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = self.layer_types
        if "full_attention" not in kinds:
            if kinds:
                raise UnsupportedCheckpoint("layer_types without full_attention are not supported")
            return
        period = self.full_attention_interval = kinds.index("full_attention") + 1
        for i, kind in enumerate(kinds):
            if kind != ("linear_attention" if (i + 1) % period else "full_attention"):
                raise UnsupportedCheckpoint(
                    "layer_types are not periodic, which mlx-lm's qwen3_5 cannot express"
                )


class Model(qwen3_5.TextModel):
    """mlx-lm's, which also reads the experts as they are published."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights by mlx-lm's names."""
        args = self.args
        joined = experts_joined(weights, args.hidden_size, args.moe_intermediate_size)
        made: dict[str, mx.array] = super().sanitize(joined)
        return made

    def shard(self, group: Any = None) -> None:
        """Keep this rank's share, as mlx-lm's class of the whole model does it."""
        whole = qwen3_5.Model.__new__(qwen3_5.Model)
        nn.Module.__init__(whole)
        whole.language_model = self
        whole.shard(group)
