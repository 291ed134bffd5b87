"""Qwen3 with experts as transformers computes it, built on mlx-lm's qwen3_moe.py.

That one turns by the plain rope whatever `rope_scaling` asks for, and does not read the experts of
Qwen3-VL, which stand together in one tensor. It is used in mlx-lm's place, and is the same for all
else.
"""

import mlx.core as mx
from mlx_lm.models import qwen3_moe
from mlx_lm.models.qwen3_moe import ModelArgs
from mlx_lm.models.rope_utils import initialize_rope

from model_kit.experts import experts_joined

__all__ = ["Model", "ModelArgs"]


class Model(qwen3_moe.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        for layer in self.layers if args.rope_scaling else ():
            layer.self_attn.rope = initialize_rope(
                args.head_dim,
                args.rope_theta,
                traditional=False,
                scaling_config=args.rope_scaling,
                max_position_embeddings=args.max_position_embeddings,
            )

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights by mlx-lm's names."""
        args = self.args
        joined = experts_joined(weights, args.hidden_size, args.moe_intermediate_size)
        made: dict[str, mx.array] = super().sanitize(joined)
        return made
