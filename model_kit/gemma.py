"""Gemma 1 as transformers computes it, built on mlx-lm's gemma.py.

That one takes no `input_embeddings`, and its MLPs have the erf GELU where transformers has the
tanh one. It is used in mlx-lm's place; weights, their names and quantization are the same.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma

from model_kit.takes_embeddings import LayersTakeEmbeddings, TakesEmbeddings
from vision_add_ons.errors import UnsupportedCheckpoint


@dataclass
class ModelArgs(gemma.ModelArgs):
    hidden_act: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        check_tied(self.tie_word_embeddings)
        # The first checkpoints say "gelu", by which transformers understands the tanh one too.
        if self.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
            raise UnsupportedCheckpoint(
                f"hidden_act {self.hidden_act!r} is not supported: Gemma's is gelu_pytorch_tanh"
            )


def check_tied(tied: bool) -> None:
    """Raise `UnsupportedCheckpoint` for a Gemma with an output layer of its own."""
    if not tied:
        raise UnsupportedCheckpoint(
            "tie_word_embeddings must be true and no lm_head among the weights: mlx-lm's Gemma has "
            "no output layer of its own"
        )


class MLP(gemma.MLP):
    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class ScaledEmbedding(LayersTakeEmbeddings):
    """For the inner model of either Gemma."""

    def embed(self, inputs: mx.array) -> mx.array:
        """What enters the first layer: scaled word embeddings, [..., hidden_size]."""
        return super().embed(inputs) * self.args.hidden_size**0.5  # type: ignore[attr-defined]


class TiedHead(TakesEmbeddings):
    """For the whole model of either Gemma."""

    def head(self, h: mx.array) -> mx.array:
        return self.model.embed_tokens.as_linear(h)  # type: ignore[attr-defined]


class GemmaModel(ScaledEmbedding, gemma.GemmaModel):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        for layer in self.layers:
            layer.mlp = MLP(args.hidden_size, args.intermediate_size)


class Model(TiedHead, gemma.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = GemmaModel(args)
