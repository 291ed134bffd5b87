"""Mistral 3: Pixtral's tower with patches merged by squares, before Mistral or Ministral 3.

Semantics: transformers' `Mistral3ForConditionalGeneration` and `PixtralProcessor`.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.configs import check_fields, positive
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.pixtral import ACTIVATIONS, PixtralAddOn, Projector
from vision_add_ons.pixtral.prompt import PARTS

CHAT_TEMPLATE = (
    PARTS
    + """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {{- '[SYSTEM_PROMPT]' + parts(message['content']) + '[/SYSTEM_PROMPT]' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- parts(message['content']) + eos_token -}}
  {%- else -%}
    {{- '[INST]' + parts(message['content']) + '[/INST]' -}}
  {%- endif -%}
{%- endfor -%}
"""
)


class PatchMerger(nn.Module):
    """Makes one of each square of `side` x `side` patches."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.merging_layer = nn.Linear(width * side * side, width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """From [rows, columns, width] to [rows / side, columns / side, width]."""
        rows, columns, width = x.shape
        squares = x.reshape(rows // self.side, self.side, columns // self.side, self.side, width)
        # Each feature's values from all the square's patches stand together.
        return self.merging_layer(squares.transpose(0, 2, 4, 1, 3).flatten(2))


class Mistral3Projector(Projector):
    """Pixtral's projector behind a norm and the merging of patches."""

    def __init__(self, whole: dict[str, Any], inputs: int) -> None:
        super().__init__(whole, inputs)
        self.norm = nn.RMSNorm(inputs, whole["text_config"]["rms_norm_eps"])
        self.patch_merger = PatchMerger(inputs, whole["spatial_merge_size"])

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(self.patch_merger(self.norm(x)))


class Mistral3AddOn(PixtralAddOn):
    """Mistral Small 3.1 and later, and Ministral 3.

    As Pixtral, with one row for each square of `spatial_merge_size` patches a side.
    """

    model_types = ("mistral3",)
    decoders = ("mistral", "ministral3")
    projector_class = Mistral3Projector

    @classmethod
    def check(cls, whole: dict[str, Any]) -> None:
        check_fields(whole, "config", projector_hidden_act=tuple(ACTIVATIONS))
        positive(whole, "config", "spatial_merge_size")
        layer = whole["vision_feature_layer"]
        if isinstance(layer, list) and len(layer) > 1:
            # The reference's own norm is as wide as a single one.
            raise UnsupportedCheckpoint(f"vision_feature_layer {layer} is more than one layer")

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """`text_config`, tied if config.json itself says so, else if `text_config` does."""
        text, assumed = super().decoder_config(config)
        if "tie_word_embeddings" in config:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """Mistral's `[INST]`, after the system text in `[SYSTEM_PROMPT]`."""
        return CHAT_TEMPLATE
