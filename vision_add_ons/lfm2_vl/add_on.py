"""The add-on itself: what of a checkpoint goes where, and one picture's way through it.

Semantics: transformers' `Lfm2VlForConditionalGeneration` and `Lfm2VlProcessor`.
"""

import math
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.chat_ml import chat_ml
from vision_add_ons.configs import check_fields, positive
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.lfm2_vl.config import OLD_TYPE, decoder_config, resolve
from vision_add_ons.lfm2_vl.tower import Projector, Siglip2Tower, most_bytes, tower_costs
from vision_add_ons.lfm2_vl.views import Views, shapes
from vision_add_ons.tokenizer_file import check_token_id, named_tokens, token_ids
from vision_add_ons.vit_blocks import Cutting, one_by_one
from vision_add_ons.weights import (
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As published, as transformers 5 has them, and as mlx-vlm converts.
TOWER = (
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.vision_model.",
    "vision_tower.",
)
PROJECTOR = ("model.multi_modal_projector.", "multi_modal_projector.")
TOKENS = {
    "image_token": "<image>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "image_thumbnail_token": "<|img_thumbnail|>",
}

CHAT_TEMPLATE = chat_ml("<image>", start="{{- bos_token -}}\n")


class Lfm2VLAddOn(VisionAddOn):
    """LFM2-VL and LFM2.5-VL.

    A picture keeps about its shape, and each square of 32 x 32 pixels (in the published models)
    gives a row. A large one is cut into tiles, each with a token before it that says where it
    stands, and a small view of the whole follows them.
    """

    model_types = ("lfm2_vl", OLD_TYPE)
    decoder_prefixes: ClassVar = {
        "model.language_model.": "model.",
        "language_model.": "",
        "lm_head.": "lm_head.",
    }

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load the tower and the projector from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `BrokenTokenizer` naming the token, `MissingWeight`, `UnexpectedWeight` or
        `UnexpectedShape` naming the tensor.
        """
        whole = resolve(config)
        check_fields(whole, "config", projector_hidden_act=("gelu",))
        check_fields({"vision_feature_layer": -1, **whole}, "config", vision_feature_layer=(-1,))
        positive(whole, "config", "downsample_factor", "projector_hidden_size")
        self.tower = Siglip2Tower(whole["vision_config"])
        factor = whole["downsample_factor"]
        self.views = Views.read(folder, whole["vision_config"]["patch_size"], factor)
        self.projector = Projector(whole)
        self.cutting = Cutting()
        self._read_tokens(folder, whole["image_token_id"])
        self._load(read_weights(folder))
        self.costs = tower_costs(self.tower, self.projector)

    def _read_tokens(self, folder: Path, image_token_id: int) -> None:
        names = list(named_tokens(folder, TOKENS).values())
        self.placeholder_id, self.start_id, self.end_id, self.thumbnail_id = token_ids(
            folder, names
        )
        self.image_token_id, self.image_marks = self.placeholder_id, (names[0],)
        check_token_id("image_token_id", image_token_id, names[0], self.image_token_id)
        # Older processors could leave those around pictures out; today's always write them.
        processor = read_json_if_there(folder / "processor_config.json")
        flag = {"use_image_special_tokens": True, **processor}
        check_fields(flag, "processor_config", use_image_special_tokens=(True,))
        places = {
            (line, column)
            for columns, lines in (shapes(*self.views.tiles) if self.views.tiles else ())
            for line in range(1, lines + 1)
            for column in range(1, columns + 1)
        }
        texts = {place: f"<|img_row_{place[0]}_col_{place[1]}|>" for place in sorted(places)}
        hint = "add it, or let the image processor's max_tiles be less"
        self.tile_ids = dict(zip(texts, token_ids(folder, texts.values(), hint), strict=True))

    def _load(self, weights: dict[str, mx.array]) -> None:
        refuse_others(weights, (*TOWER, *PROJECTOR, *self.decoder_prefixes))
        where = first_prefix(weights, TOWER)
        load_module(self.tower, with_prefix(weights, where), where, ("head.",))
        where = first_prefix(weights, PROJECTOR)
        # Some conversions made up a norm for those that have none.
        spare = () if self.projector.layer_norm is not None else ("layer_norm.",)
        load_module(self.projector, with_prefix(weights, where), where, spare)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        text, assumed = super().decoder_config(config)
        return decoder_config(config, text), assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """ChatML, as the first checkpoints have it."""
        return CHAT_TEMPLATE

    def picture_limits(self) -> list[str]:
        views = self.views
        side, rows = views.cell, f"{views.min_rows} to {views.max_rows} rows"
        lines = [f"a row for each {side} x {side} pixels, {rows} for a picture in one view"]
        if views.tiles:
            most, each = views.tiles[1], (views.tile // side) ** 2
            lines.append(
                f"those larger by {views.tolerance} become up to {most} tiles of {views.tile} x "
                f"{views.tile} pixels, {each} rows each" + ", and one view" * views.thumbnail
            )
        return lines

    def row_counts(self, size: tuple[int, int]) -> list[int]:
        """The rows of each view of a picture of this width and height."""
        factor = self.projector.factor
        return [math.prod(grid) // factor**2 for grid in self.views.grids(size)]

    def row_count(self, picture: Picture) -> int:
        """One row per square, in all views. Raises `ImageError` for a picture that is too thin."""
        return sum(self.row_counts(picture.size))

    def picture_tokens(self, picture: Picture) -> list[int]:
        layout = self.views.layout(picture.size)
        places = product(range(1, layout.lines + 1), range(1, layout.columns + 1))
        before = [[self.tile_ids[place]] for place in places]
        before += [[self.thumbnail_id] if before else []] * bool(layout.whole)
        tokens = [self.start_id]
        for told, count in zip(before, self.row_counts(picture.size), strict=True):
            tokens += [*told, *[self.placeholder_id] * count]
        return [*tokens, self.end_id]

    def tower_bytes(self, size: tuple[int, int]) -> int:
        grids = self.views.grids(size)
        rows = sum(self.row_counts(size)) * self.projector.linear_2.weight.shape[0]
        made = rows * self.costs[0].dtype.size
        views = [most_bytes(self.tower, self.costs, grid, self.cutting) for grid in set(grids)]
        return max(max(views) + made, 2 * made) if len(grids) > 1 else max(views)

    def encode_image(self, picture: Picture) -> mx.array:
        def encoded(view: np.ndarray) -> mx.array:
            rows: mx.array = self.projector(self.tower(self.views.values(view), self.cutting))
            return rows

        several = len(self.views.grids(picture.size)) > 1
        views = self.views.cut(picture.pixels())
        return mx.concatenate(one_by_one(views, encoded, several))
