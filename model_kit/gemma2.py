"""Gemma 2 as transformers computes it, built on mlx-lm's gemma2.py.

That one takes no `input_embeddings`, and none of its layers looks back through a sliding window.
It is used in mlx-lm's place, and gives the same to the last bit for text that fits the window;
weights, their names and quantization are the same.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.models import gemma2
from mlx_lm.models.base import create_attention_mask

from model_kit.gemma import ScaledEmbedding, TiedHead, check_tied
from vision_add_ons.errors import UnsupportedCheckpoint


@dataclass
class ModelArgs(gemma2.ModelArgs):
    sliding_window: int | None = None
    layer_types: list[str] = field(default_factory=list)
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        check_tied(self.tie_word_embeddings)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(self, name) is None:
                raise UnsupportedCheckpoint(
                    f"{name} null is not supported: mlx-lm's gemma2 always caps"
                )


class GemmaModel(ScaledEmbedding, gemma2.GemmaModel):
    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        h = self.embed(inputs) if input_embeddings is None else input_embeddings
        cache = cache or [None] * len(self.layers)
        offset = cache[0].offset if cache[0] is not None else 0  # [rows] for rows of a batch
        window = self.args.sliding_window
        full = sliding = create_attention_mask(h, cache[0], return_array=True)
        if window is not None and (not isinstance(offset, int) or h.shape[1] + offset > window):
            sliding = create_attention_mask(h, cache[0], window_size=window, return_array=True)
        if (
            full is not None
            and full.ndim == 4
            and self.args.num_attention_heads != self.args.num_key_value_heads
        ):
            # A mask for each row of a batch: mlx-lm's layers part the heads into groups.
            full, sliding = full[:, :, None], sliding[:, :, None]
        for layer, kind, c in zip(self.layers, self.args.layer_types, cache, strict=True):
            h = layer(h, sliding if kind == "sliding_attention" else full, c)
        return self.norm(h)


class Model(TiedHead, gemma2.Model):
    applies_sliding_window: ClassVar[bool] = True

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = GemmaModel(args)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        out = super().__call__(inputs, cache, input_embeddings)
        out = mx.tanh(out / self.final_logit_softcapping)
        return out * self.final_logit_softcapping
