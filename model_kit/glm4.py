"""GLM-4, built on mlx-lm's glm4.py, which takes no `input_embeddings`.

It is used in mlx-lm's place, and gives the same to the last bit for text; weights, their names and
quantization are the same.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.models import glm4
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.glm4 import ModelArgs

__all__ = ["Model", "ModelArgs"]


class LayersTakeEmbeddings:
    """For the inner model of a GLM-4, with experts or without."""

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        model: Any = self
        h = model.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        cache = cache or [None] * len(model.layers)
        mask = create_attention_mask(h, cache[0])
        for layer, c in zip(model.layers, cache, strict=True):
            h = layer(h, mask, cache=c)
        return model.norm(h)


class TakesEmbeddings:
    """For the whole model."""

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Logits [batch, length, vocab_size] of token ids `inputs` [batch, length].

        `input_embeddings` [batch, length, hidden_size] take the place of those of `inputs`.
        """
        model: Any = self
        return model.lm_head(model.model(inputs, cache, input_embeddings))


class Glm4Model(LayersTakeEmbeddings, glm4.Glm4Model):
    pass


class Model(TakesEmbeddings, glm4.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = Glm4Model(args)
