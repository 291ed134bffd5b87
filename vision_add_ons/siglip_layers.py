"""SigLIP's layers, for families whose tower is ours: their weights have transformers' names.

Semantics: `SiglipEncoder` of transformers, the same in SigLIP 2.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.configs import check_fields, check_heads, positive


def check_layers(vision: dict[str, Any], *sizes: str) -> None:
    """Refuse a `vision_config` whose layers are not those below; `sizes` are fields beside theirs.

    Raises `UnsupportedCheckpoint` or `BrokenConfig`, naming the field.
    """
    where = "vision_config"
    check_fields(vision, where, hidden_act=("gelu_pytorch_tanh",), num_channels=(3,))
    positive(vision, where, *sizes, "intermediate_size", "num_hidden_layers")
    check_heads(vision, where)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu_approx(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width, eps = vision["hidden_size"], vision["layer_norm_eps"]
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.self_attn = Attention(width, vision["num_attention_heads"])
        self.layer_norm2 = nn.LayerNorm(width, eps)
        self.mlp = FeedForward(width, vision["intermediate_size"])


class SiglipEncoder(nn.Module):
    """The layers of the tower that a complete `vision_config` describes; run by `siglip_block`."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        self.layers = [Layer(vision) for _ in range(vision["num_hidden_layers"])]
