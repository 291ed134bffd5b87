"""The add-on itself: what of a checkpoint goes where, and one picture's way through it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.base import ExpandedPrompt, Picture, VisionAddOn
from vision_add_ons.chat_ml import chat_ml
from vision_add_ons.configs import check_fields, positive, resolve_config
from vision_add_ons.mlx_vlm_modules import import_mlx_vlm
from vision_add_ons.mrope import MRope, PositionView, PromptPositions, in_runs
from vision_add_ons.qwen2_vl.config import check_half, check_tower, decoder_config, mrope_sections
from vision_add_ons.qwen2_vl.preprocessing import MAX_RATIO, Patches
from vision_add_ons.qwen2_vl.tower import encode, most_bytes, tower_costs
from vision_add_ons.tower_bytes import Costs
from vision_add_ons.vit_blocks import Cutting
from vision_add_ons.weights import (
    channels_last,
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As published, as transformers names its modules, and as mlx-vlm converts.
TOWER = ("visual.", "model.visual.", "vision_tower.")
KERNEL = "patch_embed.proj.weight"

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

SYSTEM = """\
{%- if loop.first and message['role'] != 'system' -%}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
  {%- endif -%}
  """
CHAT_TEMPLATE = chat_ml(IMAGE, each=SYSTEM)


class Qwen2VLAddOn(VisionAddOn):
    """Qwen2-VL, for pictures; not for videos.

    A picture keeps its shape: its sides are rounded to multiples of 28 pixels (in the published
    models), and each square of 28 x 28 gives a row. Positions count on three axes, see `mrope`.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    image_marks: tuple[str, ...] = ("<|image_pad|>", "<|video_pad|>")
    usual_sections: ClassVar = (16, 24, 24)
    """How many frequencies follow time, height and width, where a config does not say."""
    partial: ClassVar = False
    """Whether a config may have a part of each head turned."""
    video_fields: ClassVar[tuple[str, ...]] = ("video_token_id",)
    """The config's fields with tokens that mark a video's place."""
    patches_class: ClassVar[type[Patches]] = Patches
    decoder_prefixes: ClassVar = {
        **dict.fromkeys(TOWER),
        "model.language_model.": "model.",
        "language_model.": "",
        "model.": "model.",
        "lm_head.": "lm_head.",
    }

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load the tower from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape` naming the tensor.
        """
        check_half(config, "vision")
        whole = resolve_config(config)
        self.sections = mrope_sections(whole["text_config"], self.usual_sections, self.partial)
        self.placeholder_id = self.image_token_id = whole["image_token_id"]
        self.video_ids = [whole[field] for field in self.video_fields]
        self.check_tower(whole)
        self.tower = self.build_tower(whole["vision_config"])
        self.cutting = Cutting()
        self.patches = self.patches_class.read(folder, whole["vision_config"])

        weights = read_weights(folder)
        refuse_others(weights, self.decoder_prefixes)
        prefix = first_prefix(weights, TOWER)
        load_module(self.tower, self.tower_weights(with_prefix(weights, prefix)), prefix)
        self.costs = self.tower_costs()

    @staticmethod
    def check_tower(whole: dict[str, Any]) -> None:
        """Refuse a tower that is not served. Raises `UnsupportedCheckpoint` or `BrokenConfig`."""
        check_tower(whole, width="embed_dim", out_width="hidden_size")
        check_fields(whole["vision_config"], "vision_config", hidden_act=("quick_gelu",))
        positive(whole["vision_config"], "vision_config", "mlp_ratio")

    def build_tower(self, vision: dict[str, Any]) -> nn.Module:
        """The tower of a complete, checked `vision_config`; its names are the checkpoint's."""
        family = import_mlx_vlm(self.model_types[0])
        sizes = {**vision, "model_type": self.model_types[0]}
        tower: nn.Module = family.VisionModel(family.VisionConfig.from_dict(sizes))
        return tower

    def tower_weights(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The tower's tensors as MLX has them."""
        return channels_last(weights, KERNEL, channels=3)

    def tower_costs(self) -> tuple[Costs, int]:
        """What `tower_bytes` is reckoned from, asked once, of the loaded tower."""
        return tower_costs(self.tower)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        return decoder_config(config, "qwen2", cls.usual_sections)

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """Qwen's form of ChatML, with its standing system message."""
        return CHAT_TEMPLATE

    def picture_limits(self) -> list[str]:
        side, (fewest, most) = self.patches.side, self.patches.bounds
        return [
            f"sides rounded to multiples of {side} pixels, {fewest} to {most} pixels in all: "
            f"{math.ceil(fewest / side**2)} to {most // side**2} rows each",
            f"one side at most {MAX_RATIO} times the other",
        ]

    def prepare_decoder(self, text_model: nn.Module) -> None:
        for layer in text_model.layers:
            layer.self_attn.rope = MRope(layer.self_attn.rope, self.axes())

    def axes(self) -> list[int]:
        """The axis that each frequency of a head follows."""
        return in_runs(self.sections)

    def row_count(self, picture: Picture) -> int:
        """One row per square. Raises `ImageError` for a picture that is too elongated."""
        return math.prod(self.patches.grid(picture.size))

    def cache_views(
        self,
        caches: Sequence[Any],
        prompt: ExpandedPrompt,
        encode: Callable[[Picture], mx.array] | None = None,
    ) -> list[Any]:
        grids = [(span.start, *self.patches.grid(span.picture.size)) for span in prompt.spans]
        positions = PromptPositions(len(prompt.tokens), grids)
        # Caches of layers that keep a state have no positions.
        return [PositionView(c, positions) if hasattr(c, "offset") else c for c in caches]

    def tower_bytes(self, size: tuple[int, int]) -> int:
        rows, columns = self.patches.grid(size)
        return most_bytes(self.tower, self.costs, (2 * rows, 2 * columns), self.cutting)

    def encode_image(self, picture: Picture) -> mx.array:
        rows, columns = self.patches.grid(picture.size)
        patches = self.patches.cut(picture.pixels())
        return encode(
            self.tower, patches, self.patches.values, (2 * rows, 2 * columns), self.cutting
        )
