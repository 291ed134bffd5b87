"""The add-ons themselves: what of a checkpoint goes where, and one picture's way through it.

Semantics: transformers' `MiniCPMV4_6ForConditionalGeneration`,
`MiniCPMV4_7ForConditionalGeneration` and `MiniCPMV4_6Processor`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.base import ExpandedPrompt, Picture, VisionAddOn
from vision_add_ons.chat_ml import chat_ml
from vision_add_ons.configs import check_fields
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.minicpmv.canvas import Canvas, CanvasPositions
from vision_add_ons.minicpmv.config import decoder_config, resolve
from vision_add_ons.minicpmv.prompt import TOKENS, PictureTokens, check_numbering
from vision_add_ons.minicpmv.slices import Slicing
from vision_add_ons.minicpmv.tower import FOUR, Merger, MiniCPMVTower, TowerCosts
from vision_add_ons.mrope import MRope, PositionView, interleaved
from vision_add_ons.picture_sizes import Size
from vision_add_ons.qwen2_vl.config import mrope_sections
from vision_add_ons.qwen3_5 import Qwen35AddOn
from vision_add_ons.token_ids import TokenIds
from vision_add_ons.tokenizer_file import check_token_id
from vision_add_ons.vit_blocks import Cutting, one_by_one
from vision_add_ons.weights import (
    channels_last,
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As published, and as mlx-vlm converts.
TOWER = ("model.vision_tower.", "vision_tower.")
INNER = "vit_merger."  # which mlx-vlm has beside the tower
MERGER = ("model.merger.", "merger.")
KERNEL = "embeddings.patch_embedding.weight"


class MiniCPMV46AddOn(VisionAddOn):
    """MiniCPM-V 4.6, for pictures; not for videos. Its decoder is a Qwen3.5.

    A picture keeps about its shape and has the pixels of one square; a large one is cut into slices
    that have so, too. Each square of 56 x 56 pixels (in the published models) gives a row.
    """

    model_types: ClassVar[tuple[str, ...]] = ("minicpmv4_6",)
    decoder_prefixes: ClassVar = {"mtp.": None, **VisionAddOn.decoder_prefixes}

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load the tower and the merger from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `BrokenTokenizer` naming the token, `MissingWeight`, `UnexpectedWeight` or
        `UnexpectedShape` naming the tensor.
        """
        whole = resolve(config)
        vision, text, mode = (
            whole[name] for name in ("vision_config", "text_config", "downsample_mode")
        )
        self.tower = MiniCPMVTower(vision, merging=mode != "4x")
        self.merger = Merger(vision["hidden_size"], text["hidden_size"])
        self.slicing = Slicing.read(folder, vision["patch_size"], mode)
        check_numbering(folder, self.slicing.numbered)
        self.tokens = PictureTokens.read(folder)
        self._check_tokens(whole)
        self.placeholder_id = self.image_token_id = self.tokens.image
        self.image_marks, self.video_ids = self.tokens.marks, [self.tokens.video]
        self.cutting = Cutting()

        weights = read_weights(folder)
        refuse_others(weights, (*TOWER, INNER, *MERGER, *self.decoder_prefixes))
        where = first_prefix(weights, TOWER)
        named = with_prefix(weights, where)
        named |= {name: w for name, w in weights.items() if name.startswith(INNER)}
        load_module(self.tower, channels_last(named, KERNEL, channels=3), where)
        where = first_prefix(weights, MERGER)
        load_module(self.merger, with_prefix(weights, where), where)
        self.costs = TowerCosts(self.tower, self.merger)

    def _check_tokens(self, whole: dict[str, Any]) -> None:
        """Raise `BrokenConfig` where the config's ids are not the tokenizer's."""
        ids = {"image_token_id": self.tokens.image, "video_token_id": self.tokens.video}
        for field, known in ids.items():
            if whole[field] is not None:
                check_token_id(field, whole[field], TOKENS[field.removesuffix("_id")], known)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        VisionAddOn.decoder_config(config)  # transformers would take another model for it
        return decoder_config(config)

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """ChatML, each image on a line of its own."""
        return chat_ml("<|image_pad|>\\n")

    def picture_limits(self) -> list[str]:
        cut, side = self.slicing, self.slicing.cell
        lines = [
            f"a row for each {side} x {side} pixels, brought to about {cut.scale} x {cut.scale} "
            f"pixels: about {max(1, round(cut.scale / side)) ** 2} rows"
        ]
        if cut.most > 1:
            lines.append(f"larger ones are cut into up to {cut.most} slices of as many each, too")
        return lines

    def views(self, size: Size) -> list[Size]:
        """Lines and columns of the rows of each view of a picture of this width and height."""
        return [self.slicing.rows(sides) for sides in self.slicing.layout(size).views()]

    def row_count(self, picture: Picture) -> int:
        return sum(math.prod(grid) for grid in self.views(picture.size))

    def picture_tokens(self, picture: Picture) -> list[int]:
        layout = self.slicing.layout(picture.size)
        whole, each = (math.prod(self.slicing.rows(s)) for s in (layout.whole, layout.slice))
        return self.tokens.block(whole, layout.lines, layout.columns, each)

    def expand_prompt(
        self,
        tokens: Sequence[int],
        pictures: Sequence[Picture],
        positions: Sequence[int] | None = None,
    ) -> ExpandedPrompt:
        """With the number of each picture before its span, where they are numbered."""
        expanded = super().expand_prompt(tokens, pictures, positions)
        if not self.slicing.numbered or not expanded.spans:
            return expanded
        parts: list[Sequence[int]] = []
        spans = []
        done = added = 0
        for index, span in enumerate(expanded.spans):
            number = self.tokens.number(index)
            parts += [expanded.tokens[done : span.start], number]
            done, added = span.start, added + len(number)
            spans.append(span.shifted(added))
        return ExpandedPrompt(TokenIds.joined([*parts, expanded.tokens[done:]]), tuple(spans))

    def tower_bytes(self, size: Size) -> int:
        views = self.views(size)
        cells = FOUR**2 if self.tower.merging else FOUR
        dtype, out = self.costs.layers.dtype, self.merger.mlp[0].linear_2.weight.shape[0]
        made = sum(map(math.prod, views)) * out * dtype.size
        most = max(self.costs.most_bytes(cells * math.prod(v), self.cutting) for v in set(views))
        return max(most + made, 2 * made) if len(views) > 1 else most

    def encode_image(self, picture: Picture) -> mx.array:
        def encoded(view: np.ndarray) -> mx.array:
            pixels = self.slicing.pixels.normalised(view)
            rows: mx.array = self.merger(self.tower(pixels, self.cutting))
            return rows

        views = self.slicing.cut(picture.pixels())
        several = self.slicing.layout(picture.size).lines > 0
        return mx.concatenate(one_by_one(views, encoded, several))


class MiniCPMV47AddOn(MiniCPMV46AddOn):
    """MiniCPM-V 4.7: as 4.6, but pictures and their slices lie on a canvas, see `canvas`."""

    model_types = ("minicpmv4_7",)

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        super().__init__(folder, config)
        text = resolve(config)["text_config"]  # the decoder's own says nothing of axes any more
        self.sections = mrope_sections(text, Qwen35AddOn.usual_sections, partial=True)

    def _check_tokens(self, whole: dict[str, Any]) -> None:
        super()._check_tokens(whole)
        # Whoever published it had another way to count once, and a name for this one.
        check_fields(whole, "config", mrope_mode=(None, "canvas"))
        known = self.tokens
        ids = {
            "image_start_id": known.start,
            "image_end_id": known.end,
            "slice_start_id": known.slice_start,
            "slice_end_id": known.slice_end,
        }
        for field, token in ids.items():
            if whole[field] != token:
                raise BrokenConfig(f"{field} is {whole[field]}, but the tokenizer has {token}")
        newline = whole["newline_id"]
        if type(newline) is not int:
            raise BrokenConfig(f"newline_id must be a token's number, not {newline!r}")
        if not known.line_end:
            raise UnsupportedCheckpoint("the tokenizer makes no token of newline_id's line break")
        self.markers = frozenset([*ids.values(), newline])

    def prepare_decoder(self, text_model: nn.Module) -> None:
        for layer in text_model.layers:
            if not layer.is_linear:
                layer.self_attn.rope = MRope(layer.self_attn.rope, interleaved(self.sections))

    def cache_views(
        self,
        caches: Sequence[Any],
        prompt: ExpandedPrompt,
        encode: Callable[[Picture], mx.array] | None = None,
    ) -> list[Any]:
        positions = CanvasPositions(
            prompt.tokens,
            [(s.start, self._canvas(s.picture.size)) for s in prompt.spans],
            self.markers,
        )
        # Caches of layers that keep a state have no positions.
        return [PositionView(c, positions) if hasattr(c, "offset") else c for c in caches]

    def _canvas(self, size: Size) -> Canvas:
        layout = self.slicing.layout(size)
        whole, each = (self.slicing.rows(sides) for sides in (layout.whole, layout.slice))
        return Canvas(whole, (layout.lines, layout.columns), each, len(self.tokens.line_end))
