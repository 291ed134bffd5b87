"""Gemma 1 as transformers computes it, built on mlx-lm's gemma.py.

That one takes no `input_embeddings`, and its MLPs have the erf GELU where transformers has the
tanh one. It is used in mlx-lm's place; weights, their names and quantization are the same.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma
from mlx_lm.models.base import create_attention_mask

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


class ScaledEmbedding:
    """For the inner model of either Gemma."""

    def embed(self, inputs: mx.array) -> mx.array:
        """What enters the first layer: scaled word embeddings, [..., hidden_size]."""
        return self.embed_tokens(inputs) * self.args.hidden_size**0.5  # type: ignore[attr-defined]


class TakesEmbeddings:
    """For the whole model of either Gemma."""

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Logits [batch, length, vocab_size] of token ids `inputs` [batch, length].

        `input_embeddings` [batch, length, hidden_size] take the place of `model.embed(inputs)`:
        as transformers 5 has it, pictures' rows stand beside words that are already scaled.
        """
        model = self.model  # type: ignore[attr-defined]
        return model.embed_tokens.as_linear(model(inputs, cache, input_embeddings))


class GemmaModel(ScaledEmbedding, gemma.GemmaModel):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        for layer in self.layers:
            layer.mlp = MLP(args.hidden_size, args.intermediate_size)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        h = self.embed(inputs) if input_embeddings is None else input_embeddings
        cache = cache or [None] * len(self.layers)
        mask = create_attention_mask(h, cache[0])
        for layer, c in zip(self.layers, cache, strict=True):
            h = layer(h, mask, c)
        return self.norm(h)


class Model(TakesEmbeddings, gemma.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = GemmaModel(args)
