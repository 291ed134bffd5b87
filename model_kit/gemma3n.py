"""The text half of Gemma 3n as transformers computes it, built on mlx-lm's gemma3n.py.

mlx-lm's own class takes the config of the whole model, so that nothing of the decoder's would be
checked; divides by the lengths of what is projected, also where they are zero; and has no place for
the embeddings of ids that other modalities bring. It is used in mlx-lm's place, and gives the same
to the last bit for text that needs none of this.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gemma3n
from mlx_lm.models.base import create_attention_mask

from model_kit.gemma import check_tied
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint

LEAST = 1e-5
"""Of the mean square that a projected state is divided by."""


@dataclass
class ModelArgs(gemma3n.TextConfig):
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        check_tied(self.tie_word_embeddings)
        if self.rope_scaling is not None:
            raise UnsupportedCheckpoint(
                "rope_scaling is not supported: mlx-lm's gemma3n turns by rope_theta alone"
            )
        if not 0 <= self.num_kv_shared_layers < self.num_hidden_layers:
            raise BrokenConfig(
                f"num_kv_shared_layers {self.num_kv_shared_layers} leaves none of "
                f"{self.num_hidden_layers} layers with keys of its own"
            )
        own = self.layer_types[: self.num_hidden_layers - self.num_kv_shared_layers]
        if {*own} != {"full_attention", "sliding_attention"}:
            raise UnsupportedCheckpoint(
                "layer_types must have full_attention and sliding_attention among the layers "
                f"before the last {self.num_kv_shared_layers}, and nothing else"
            )
        # transformers clips these weights in training alone.
        self.altup_coef_clip = None


class Decoder(gemma3n.LanguageModel):
    """Everything, the head that is the embeddings included."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        for layer in self.layers[self.first_kv_shared_layer_idx :]:
            for unused in ("k_proj", "v_proj", "k_norm"):
                layer.self_attn.pop(unused)
        self._others: tuple[int, mx.array] | None = None

    def embed_others(self, first: int, embeddings: mx.array) -> None:
        """Have ids from `first` on looked up in `embeddings` [ids, hidden_size], not in the
        decoder's own; ids behind them are looked up there as the last."""
        self._others = (first, embeddings)

    def embed(self, inputs: mx.array) -> mx.array:
        """What enters the first layer for token ids: [..., hidden_size]."""
        words: mx.array = self.embed_tokens(inputs) * self.hidden_size**0.5
        if self._others is None:
            return words
        first, embeddings = self._others
        others = embeddings[mx.clip(inputs - first, 0, len(embeddings) - 1)]
        return mx.where((inputs >= first)[..., None], others.astype(words.dtype), words)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Logits [batch, length, vocab_size] of token ids `inputs` [batch, length].

        `input_embeddings` [batch, length, hidden_size] take the place of `embed(inputs)`; the
        inputs of each layer still follow from the ids.
        """
        x = self.embed(inputs) if input_embeddings is None else input_embeddings
        layered = self.project_per_layer_inputs(x, self.get_per_layer_inputs(inputs))
        cache = cache or self.make_cache()
        masks = {
            "full_attention": create_attention_mask(x, cache[self.first_full_idx]),
            "sliding_attention": create_attention_mask(
                x, cache[self.first_sliding_idx], window_size=self.sliding_window
            ),
        }
        offset = cache[0].offset  # before the layers advance it
        projected = [project(x) for project in self.altup_projections]
        h = mx.concatenate([x[None], _as_long_as(x, mx.stack(projected))])
        for i, (layer, kind) in enumerate(zip(self.layers, self.config.layer_types, strict=True)):
            shared = cache[self.layer_idx_to_cache_idx[i]]
            h = layer(h, masks[kind], shared, layered[:, :, i], offset=offset)
        projected = [p(h[i + 1]) for i, p in enumerate(self.altup_unembed_projections)]
        h = mx.concatenate([h[:1], _as_long_as(h[0], mx.stack(projected))])
        out: mx.array = self.embed_tokens.as_linear(self.norm(mx.mean(h, axis=0)))
        if self.final_logit_softcapping is not None:
            out = gemma3n.logit_softcap(self.final_logit_softcapping, out)
        return out


class Model(nn.Module):
    applies_sliding_window: ClassVar[bool] = True

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = Decoder(args)

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        return self.model(inputs, cache, input_embeddings)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights without those of layers that look at others' keys and values: published
        checkpoints have them, and nothing uses them."""
        first = self.model.first_kv_shared_layer_idx
        unused = tuple(
            f"model.layers.{i}.self_attn.{name}."
            for i in range(first, len(self.layers))
            for name in ("k_proj", "v_proj", "k_norm")
        )
        return {name: w for name, w in weights.items() if not name.startswith(unused)}

    @property
    def layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = self.model.layers
        return layers

    def make_cache(self) -> list[Any]:
        """One for each layer that has keys and values of its own."""
        caches: list[Any] = self.model.make_cache()
        return caches


def _as_long_as(x: mx.array, projected: mx.array) -> mx.array:
    """`projected` [n, ...] with the root mean square that `x` [...] has."""
    wanted, found = (mx.mean(a**2, axis=-1, keepdims=True) for a in (x, projected))
    return projected * (wanted**0.5 / mx.maximum(found, LEAST) ** 0.5)
