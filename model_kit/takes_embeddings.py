"""What decoders built on those of mlx-lm that take no `input_embeddings` have in common."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_attention_mask


class LayersTakeEmbeddings:
    """For the inner model."""

    def embed(self, inputs: mx.array) -> mx.array:
        """What enters the first layer for token ids: [..., hidden_size]."""
        embedded: mx.array = self.embed_tokens(inputs)  # type: ignore[attr-defined]
        return embedded

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        model: Any = self
        h = self.embed(inputs) if input_embeddings is None else input_embeddings
        cache = cache or [None] * len(model.layers)
        mask = create_attention_mask(h, cache[0])
        for layer, c in zip(model.layers, cache, strict=True):
            h = layer(h, mask, cache=c)
        return model.norm(h)


class TakesEmbeddings:
    """For the whole model."""

    def head(self, h: mx.array) -> mx.array:
        """Logits [..., vocab_size] of what leaves the last norm."""
        logits: mx.array = self.lm_head(h)  # type: ignore[attr-defined]
        return logits

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Logits [batch, length, vocab_size] of token ids `inputs` [batch, length].

        `input_embeddings` [batch, length, hidden_size] take the place of `model.embed(inputs)`: for
        Gemma, as transformers 5 has it, images' rows stand beside words that are already scaled.
        """
        return self.head(self.model(inputs, cache, input_embeddings))  # type: ignore[attr-defined]
