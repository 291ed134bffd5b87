"""Qwen3 with experts as transformers computes it, built on mlx-lm's qwen3_moe.py.

That one turns by the plain rope whatever `rope_scaling` asks for, and does not read the experts of
Qwen3-VL, which stand together in one tensor. It is used in mlx-lm's place, and is the same for all
else.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models import qwen3_moe
from mlx_lm.models.rope_utils import initialize_rope


@dataclass
class ModelArgs(qwen3_moe.ModelArgs):
    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> "ModelArgs":
        """transformers 5 writes `num_local_experts`."""
        experts = params.get("num_local_experts")
        args: ModelArgs = super().from_dict({"num_experts": experts, **params})
        return args


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
        """mlx-lm's names: `gate_up_proj` and `down_proj` of all of Qwen3-VL's experts become
        matrices of their own.

        transformers 5 has them as it multiplies, [experts, outputs, inputs]; as published, the last
        two are the other way round.
        """
        width, inner = self.args.hidden_size, self.args.moe_intermediate_size
        shapes = {"gate_up_proj": (2 * inner, width), "down_proj": (width, inner)}
        apart: dict[str, mx.array] = {}
        for name, weight in weights.items():
            stem, _, last = name.rpartition(".experts.")
            if last not in shapes or weight.ndim != 3:
                apart[name] = weight
                continue
            if weight.shape[1:] != shapes[last]:
                weight = weight.swapaxes(1, 2)
            parts = {"down_proj": weight}
            if last == "gate_up_proj":
                gate, up = mx.split(weight, 2, axis=1)
                parts = {"gate_proj": gate, "up_proj": up}
            apart |= {f"{stem}.switch_mlp.{part}.weight": own for part, own in parts.items()}
        made: dict[str, mx.array] = super().sanitize(apart)
        return made
