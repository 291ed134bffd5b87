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


class Glm4Model(glm4.Glm4Model):
    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        h = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        cache = cache or [None] * len(self.layers)
        mask = create_attention_mask(h, cache[0])
        for layer, c in zip(self.layers, cache, strict=True):
            h = layer(h, mask, cache=c)
        return self.norm(h)


class Model(glm4.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = Glm4Model(args)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Logits [batch, length, vocab_size] of token ids `inputs` [batch, length].

        `input_embeddings` [batch, length, hidden_size] take the place of those of `inputs`.
        """
        return self.lm_head(self.model(inputs, cache, input_embeddings))
