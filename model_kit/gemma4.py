"""Gemma 4's decoder as transformers computes it, built on mlx-lm's gemma4_text.py.

That one reads no `per_layer_config`, scales what it is given as `input_embeddings`, and has the
defaults of one of its sizes. It is used in mlx-lm's place, for the unified form too, and gives the
same to the last bit for text; weights, their names and quantization are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models import gemma4_text

from vision_add_ons.configs import positive
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint

EXACT_ROPE_TYPES = ("default", "proportional")

# What a layer may have of its own, and the name that mlx-lm has for it in layers of full attention.
OF_ONE_LAYER = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass
class ModelArgs(gemma4_text.ModelArgs):
    # The unified form's config has no such fields.
    vocab_size_per_layer_input: int = 0
    hidden_size_per_layer_input: int = 0
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    final_logit_softcapping: float | None = None
    # What mlx-lm's does not read.
    attention_bias: bool = False
    use_bidirectional_attention: str | None = None
    per_layer_config: dict[Any, dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_bias:
            raise UnsupportedCheckpoint("attention_bias is not supported by mlx-lm's gemma4_text")
        if self.use_bidirectional_attention not in (None, "vision"):
            raise UnsupportedCheckpoint(
                f"use_bidirectional_attention {self.use_bidirectional_attention!r} is not "
                "supported (only None or 'vision'): such a model writes no answers"
            )
        self._check_layers()
        self._read_layers()
        self._check_ropes()
        if self.hidden_size_per_layer_input and self.vocab_size_per_layer_input < self.vocab_size:
            raise UnsupportedCheckpoint(
                f"vocab_size_per_layer_input {self.vocab_size_per_layer_input} is not supported: "
                f"it is less than vocab_size {self.vocab_size}"
            )
        if self.enable_moe_block:
            experts = dict(vars(self))
            positive(experts, "config", "num_experts", "top_k_experts", "moe_intermediate_size")
            if self.top_k_experts > self.num_experts:
                raise BrokenConfig(
                    f"top_k_experts {self.top_k_experts} is more than num_experts "
                    f"{self.num_experts}"
                )

    def _check_layers(self) -> None:
        kinds, layers = self.layer_types or [], self.num_hidden_layers
        last = kinds[-1:] == [FULL]
        if not last or len(kinds) != layers or not set(kinds) <= {FULL, SLIDING}:
            raise UnsupportedCheckpoint(
                f"layer_types must name one of {FULL} and {SLIDING} for each of {layers} layers, "
                f"the last {FULL}"
            )
        positive(dict(vars(self)), "config", "sliding_window")
        shared = self.num_kv_shared_layers
        own = set(kinds[: layers - shared]) if 0 <= shared < layers else set()
        if own != set(kinds):
            raise BrokenConfig(
                f"num_kv_shared_layers {shared} of {layers} leaves no layer with keys and values "
                "of its own for each of the layer_types"
            )

    def _read_layers(self) -> None:
        """Give the layers of full attention what `per_layer_config` says of them."""
        # In files the names are texts, with zeros before them or not.
        told = {int(name): own for name, own in (self.per_layer_config or {}).items()}
        usual = {name: getattr(self, name) for name in OF_ONE_LAYER}
        found: dict[str, dict[str, Any]] = {}
        alike = True
        for i, kind in enumerate(self.layer_types or ()):
            own = {**usual, **told.pop(i, {})}
            alike = found.setdefault(kind, own) == own and alike
        full, sliding = found[FULL], found.get(SLIDING, usual)
        if told or not alike or sliding != usual or set(full) != set(usual):
            raise UnsupportedCheckpoint(
                "per_layer_config is not supported but for head_dim and num_key_value_heads of "
                "all layers of full attention"
            )
        if full["num_key_value_heads"] != self.num_key_value_heads and not self.attention_k_eq_v:
            raise UnsupportedCheckpoint(
                "per_layer_config with num_key_value_heads is not supported without "
                "attention_k_eq_v"
            )
        positive(full, "per_layer_config", *OF_ONE_LAYER)
        for name, theirs in OF_ONE_LAYER.items():
            setattr(self, theirs, full[name])

    def _check_ropes(self) -> None:
        for kind in set(self.layer_types or ()):
            rope = (self.rope_parameters or {}).get(kind)
            if not isinstance(rope, dict):
                raise BrokenConfig(f"rope_parameters say nothing of {kind}")
            share = rope.get("partial_rotary_factor", 1.0)
            width = self.global_head_dim if kind == FULL else self.head_dim
            sane = isinstance(share, int | float) and 0 <= share <= 1
            if rope.get("rope_type") == "proportional" and not (
                sane and int(width * share) % 2 == 0
            ):
                raise UnsupportedCheckpoint(
                    f"partial_rotary_factor {share!r} is not supported: it is to give an even "
                    f"share of a head of {width}"
                )


class Gemma4TextModel(gemma4_text.Gemma4TextModel):
    """mlx-lm's, which takes `input_embeddings` as they enter the first layer.

    Images' rows so stand beside words that are scaled already, as in transformers, and are not
    divided only to be multiplied, which would round them twice.
    """

    def __init__(self, config: ModelArgs) -> None:
        super().__init__(config)
        self.scale = config.hidden_size**0.5
        self.embed_scale = 1.0
        self.stand_ins: tuple[int, ...] = ()
        self.pad_token_id = config.pad_token_id

    def embed(self, inputs: mx.array) -> mx.array:
        """What enters the first layer: scaled word embeddings, [..., hidden_size]."""
        embedded: mx.array = self.embed_tokens(inputs) * self.scale
        return embedded

    def look_up_padding_for(self, tokens: Sequence[int], pad: int) -> None:
        """Give each layer, for these ids, what it is given for `pad`: they stand for rows, which
        have no per-layer input of their own."""
        self.stand_ins, self.pad_token_id = tuple(tokens), pad

    def __call__(
        self,
        inputs: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
        per_layer_inputs: mx.array | None = None,
    ) -> mx.array:
        if input_embeddings is None:
            input_embeddings = self.embed(inputs)
        if self.hidden_size_per_layer_input and per_layer_inputs is None:
            for token in self.stand_ins:
                inputs = mx.where(inputs == token, self.pad_token_id, inputs)
            per_layer_inputs = self._get_per_layer_inputs(inputs)
        made: mx.array = super().__call__(inputs, cache, input_embeddings, per_layer_inputs)
        return made


class Model(gemma4_text.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model = Gemma4TextModel(args)
