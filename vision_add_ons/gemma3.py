"""Gemma 3 with pictures: a SigLIP tower, pooled and projected, and spans that see themselves.

Semantics: transformers' `Gemma3ForConditionalGeneration`, `Gemma3Processor` and
`Gemma3ImageProcessorPil`, without pan-and-scan. Tower and projector are mlx-vlm's.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from PIL import Image

from vision_add_ons.base import ImageSpan, Picture, VisionAddOn
from vision_add_ons.cache_views import Range
from vision_add_ons.configs import positive, resolve_config
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.mlx_vlm_modules import import_mlx_vlm
from vision_add_ons.pixels import (
    HALF_MEAN,
    HALF_STD,
    Pixels,
    check_square,
    read_processor_config,
)
from vision_add_ons.siglip import (
    check_siglip,
    load_siglip,
    siglip_bytes,
    siglip_costs,
    siglip_features,
)
from vision_add_ons.vit_blocks import Cutting

BEGIN, ROW, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set turn = namespace(system='') -%}
{%- for message in messages -%}
  {%- set text = message['content'] if message['content'] is string
                 else message['content'] | map(attribute='text', default='') | join -%}
  {%- if message['role'] == 'system' -%}
    {%- set turn.system = text + '\\n\\n' -%}
  {%- else -%}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' -}}
    {{- turn.system -}}
    {%- set turn.system = '' -%}
    {%- if message['content'] is not string -%}
      {%- for part in message['content'] if part['type'] == 'image' -%}
        {{- '<start_of_image>' -}}
      {%- endfor -%}
    {%- endif -%}
    {{- text | trim + '<end_of_turn>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


class Gemma3AddOn(VisionAddOn):
    """Gemma 3, 4B and up.

    Each picture is squashed to the tower's square and gives `mm_tokens_per_image` rows, between
    `<start_of_image>` and `<end_of_image>`. The rows of one picture see each other whole, in full
    and in sliding layers.
    """

    model_types = ("gemma3",)
    image_marks = (BEGIN, ROW)

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load tower and projector from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape` naming the tensor.
        """
        whole = resolve_config(config)
        vision, text = whole["vision_config"], whole["text_config"]
        check_siglip(vision)
        positive(whole, "config", "mm_tokens_per_image", "image_token_index")
        self.rows = _checked_rows(whole["mm_tokens_per_image"], vision)
        self.side = vision["image_size"]
        self.placeholder_id = self.image_token_id = whole["image_token_index"]

        processor = read_processor_config(folder)
        if processor.get("do_pan_and_scan"):
            raise UnsupportedCheckpoint("the image processor's do_pan_and_scan is not supported")
        check_square(processor, self.side)
        self.cutting = Cutting()
        self.pixels = Pixels.read(processor, Image.Resampling.BILINEAR, HALF_MEAN, HALF_STD)

        gemma3 = import_mlx_vlm("gemma3")
        sizes = gemma3.ModelConfig(
            gemma3.TextConfig.from_dict({**text, "mm_tokens_per_image": self.rows}),
            gemma3.VisionConfig.from_dict(vision),
            "gemma3",
        )
        self.tower = gemma3.VisionModel(sizes.vision_config).vision_model
        self.projector = import_mlx_vlm("gemma3.gemma3").Gemma3MultiModalProjector(sizes)
        # The decoder scales all its input by this, rounded to bfloat16 whatever it computes in.
        self.scale = mx.array(math.sqrt(text["hidden_size"]), mx.bfloat16).astype(mx.float32)

        eps = vision["layer_norm_eps"]
        load_siglip(self.tower, self.projector, eps, folder, self.decoder_prefixes)
        self.costs = siglip_costs(self.tower, self.projector)

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """Gemma's turns, the system text at the start of the first."""
        return CHAT_TEMPLATE

    def picture_limits(self) -> list[str]:
        return [f"squashed to {self.side} x {self.side} pixels, {self.rows} rows each"]

    def prepare_text(self, text: str) -> str:
        """Stand each `<start_of_image>` alone, with one token for the picture behind it.

        Before the text is tokenised, since line breaks next to each other become one token.
        """
        return text.replace(BEGIN, f"\n\n{BEGIN}{ROW}{END}\n\n")

    def row_count(self, picture: Picture) -> int:
        return self.rows

    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        """The rows of a picture; of several with nothing between them, as the reference has it."""
        ranges: list[Range] = []
        for span in spans:
            touching = ranges and ranges[-1][1] == span.start
            start = ranges.pop()[0] if touching else span.start
            ranges.append((start, span.end))
        return tuple(ranges)

    def tower_bytes(self, size: tuple[int, int]) -> int:
        return siglip_bytes(self.tower, self.costs, self.cutting)

    def encode_image(self, picture: Picture) -> mx.array:
        pixels = self.pixels(picture.pixels(), self.side, self.side)
        features = siglip_features(self.tower, pixels, self.cutting)
        rows: mx.array = self.projector(features[None])[0]
        return (rows.astype(mx.float32) / self.scale).astype(features.dtype)


def _checked_rows(rows: int, vision: dict[str, Any]) -> int:
    """The rows of a picture, if pooling by a whole number of patches gives so many."""
    patches, side = vision["image_size"] // vision["patch_size"], math.isqrt(rows)
    if side * side != rows or patches % side:
        raise BrokenConfig(
            f"mm_tokens_per_image {rows} cannot be pooled from {patches} x {patches} patches"
        )
    return rows
