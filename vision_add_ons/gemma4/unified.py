"""The unified form of Gemma 4, which has no tower: squares of pixels are projected to rows.

Semantics: transformers' `Gemma4UnifiedForConditionalGeneration` and `Gemma4UnifiedProcessor`.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.base import Picture
from vision_add_ons.configs import check_fields, positive
from vision_add_ons.gemma4.add_on import PROJECTOR, Gemma4AddOn
from vision_add_ons.gemma4.preprocessing import Squares
from vision_add_ons.gemma4.tower import Projector
from vision_add_ons.picture_sizes import Size
from vision_add_ons.tower_bytes import SAMPLE, most_of, per_row
from vision_add_ons.vit_blocks import one_by_one, stretches
from vision_add_ons.weights import first_prefix, load_module, with_prefix

EMBEDDER = ("model.vision_embedder.", "vision_embedder.")


class Embedder(nn.Module):
    """From squares to rows, before the projector."""

    def __init__(self, vision: dict[str, Any]) -> None:
        super().__init__()
        width = vision["mm_embed_dim"]
        values = 3 * (vision["patch_size"] * vision["pooling_kernel_size"]) ** 2
        self.patch_ln1 = nn.LayerNorm(values)
        self.patch_dense = nn.Linear(values, width)
        self.patch_ln2 = nn.LayerNorm(width)
        self.pos_embedding = mx.zeros((vision["mm_posemb_size"], 2, width))
        self.pos_norm = nn.LayerNorm(width)

    def __call__(self, values: mx.array, places: mx.array) -> mx.array:
        """Rows [n, width] of squares, float32 [n, side, side, 3] from 0 to 1; `places` [n, 2] are
        their columns and lines."""
        values = values.flatten(1).astype(self.pos_embedding.dtype)
        rows = self.patch_ln2(self.patch_dense(self.patch_ln1(values)))
        learned = self.pos_embedding[places, mx.arange(2)].sum(1)
        return self.pos_norm(rows + learned)


class Gemma4UnifiedAddOn(Gemma4AddOn):
    """Gemma 4 without a tower: 12B.

    Each square of 48 x 48 pixels (in the published model) gives a row. The rows of one picture see
    each other whole, in all layers.
    """

    model_types = ("gemma4_unified",)
    everywhere = True

    @staticmethod
    def own_prefixes() -> tuple[str, ...]:
        return (*EMBEDDER, *PROJECTOR)

    def load(
        self, folder: Path, vision: dict[str, Any], width: int, weights: dict[str, mx.array]
    ) -> None:
        where = "vision_config"
        check_fields(vision, where, model_type=("gemma4_unified_vision",))
        positive(vision, where, "mm_embed_dim", "mm_posemb_size")
        self.squares = Squares.read(folder, vision, torch=True)
        positions = "mm_posemb_size"
        self.squares.check_positions(positions, vision[positions], patches=False)
        inner = vision["mm_embed_dim"]
        check_fields(vision, where, output_proj_dims=(inner,))
        self.embedder = Embedder(vision)
        self.projector = Projector(inner, width, vision["rms_norm_eps"])
        for part, names in ((self.embedder, EMBEDDER), (self.projector, PROJECTOR)):
            before = first_prefix(weights, names)
            load_module(part, with_prefix(weights, before), before)
        values = self.embedder.patch_ln1.weight
        self.each = per_row(
            lambda x: self.projector(self.embedder(x, mx.zeros((SAMPLE, 2), mx.int32))),
            mx.zeros((SAMPLE, 1, values.size)),
            modules=[self.embedder, self.projector],
        )

    def tower_bytes(self, size: Size) -> int:
        lines, columns = self.squares.grid(size)
        total, values = lines * columns, self.embedder.patch_ln1.weight.size
        piece = min(total, self.cutting.rows)
        # MLX rounds arrays up, by up to 16 KiB each in the memory of a GPU.
        made = total * self.projector.embedding_projection.weight.shape[0] * 4 + 2**16
        return most_of(total, self.cutting, piece * (4 * values + self.each) + made, made)

    def encode_image(self, picture: Picture) -> mx.array:
        squares = self.squares.cut(picture.pixels())
        _, columns = self.squares.grid(picture.size)
        places = np.stack(np.divmod(np.arange(len(squares)), columns)[::-1], axis=1)
        lengths = self.cutting.pieces([1] * len(squares))

        def encoded(part: slice) -> mx.array:
            values = self.squares.pixels.normalised(squares[part])
            rows: mx.array = self.projector(self.embedder(values, mx.array(places[part])))
            return rows

        return mx.concatenate(one_by_one(stretches(lengths), encoded, len(lengths) > 1))
