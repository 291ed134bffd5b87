"""The add-on of Idefics3 and SmolVLM.

Semantics: transformers' `Idefics3ForConditionalGeneration`, `Idefics3Processor` and
`Idefics3ImageProcessorPil`, of which SmolVLM's are copies. Videos have no place in messages.
"""

from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.configs import check_fields, positive, resolve_config
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.graph_bytes import graph_bytes
from vision_add_ons.idefics3.prompt import CHAT_TEMPLATE, IMAGE, PictureTokens
from vision_add_ons.idefics3.tiles import Tiling
from vision_add_ons.idefics3.tower import Idefics3Tower
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.pixels import HALF_MEAN, HALF_STD, Pixels, read_processor_config
from vision_add_ons.vit_blocks import Cutting, one_by_one
from vision_add_ons.weights import (
    channels_last,
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As published, and as mlx-vlm writes them.
TOWER = ("model.vision_model.", "vision_model.")
CONNECTOR = ("model.connector.", "connector.")
TOWERS = ("idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision")


class Projection(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, width, bias=False)


class Connector(nn.Module):
    """Makes one row of each square of `scale` x `scale` patches: [tiles, rows, width]."""

    def __init__(self, whole: dict[str, Any], side: int) -> None:
        super().__init__()
        self.side, self.scale = side, whole["scale_factor"]
        inputs = whole["vision_config"]["hidden_size"] * self.scale**2
        self.modality_projection = Projection(inputs, whole["text_config"]["hidden_size"])

    def __call__(self, x: mx.array) -> mx.array:
        cells = self.side // self.scale
        squares = x.reshape(len(x), cells, self.scale, cells, self.scale, -1).swapaxes(2, 3)
        return self.modality_projection.proj(squares.reshape(len(x), cells * cells, -1))


class Idefics3AddOn(VisionAddOn):
    """Idefics3, SmolVLM and SmolVLM2, for pictures.

    A picture is brought to one size, cut into square tiles, and seen whole as one tile more. Each
    tile gives the same number of rows; tokens of their own tell where it lies.
    """

    model_types = ("idefics3", "smolvlm")
    image_marks = (IMAGE,)
    decoder_prefixes: ClassVar = {
        "model.text_model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "language_model.": "model.",
        "lm_head.": "lm_head.",
    }

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load the tower and the connector from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `BrokenTokenizer` naming the token, `MissingWeight`, `UnexpectedWeight` or
        `UnexpectedShape` naming the tensor.
        """
        whole = resolve_config(config)
        # The resolved one bears the model type of its class.
        given = config.get("vision_config") or {}
        check_fields({"model_type": TOWERS[0], **given}, "vision_config", model_type=TOWERS)
        vision = whole["vision_config"]
        self.tower = Idefics3Tower(vision)
        self.rows = _rows(whole, self.tower.side)
        self.connector = Connector(whole, self.tower.side)

        told = read_json_if_there(folder / "processor_config.json").get("image_seq_len", self.rows)
        if told != self.rows:
            raise UnsupportedCheckpoint(
                f"processor_config.json's image_seq_len is {told!r}, but config.json's image_size, "
                f"patch_size and scale_factor make {self.rows} rows a tile"
            )
        settings = read_processor_config(folder)
        self.tiling = Tiling.read(settings, vision["image_size"])
        self.pixels = Pixels.read(settings, Image.Resampling.LANCZOS, HALF_MEAN, HALF_STD)
        self.tokens = PictureTokens.read(folder, self.tiling.most)
        self.placeholder_id = self.image_token_id = whole["image_token_id"]
        if self.tokens.image != self.image_token_id:
            raise BrokenConfig(
                f"image_token_id is {self.image_token_id}, but the tokenizer's {IMAGE} is "
                f"{self.tokens.image}"
            )

        weights = read_weights(folder)
        refuse_others(weights, (*TOWER, *CONNECTOR, *self.decoder_prefixes))
        where = first_prefix(weights, TOWER)
        named = with_prefix(weights, where)
        named = channels_last(named, "embeddings.patch_embedding.weight", channels=3)
        load_module(self.tower, named, where)
        where = first_prefix(weights, CONNECTOR)
        load_module(self.connector, with_prefix(weights, where), where)
        self.cutting = Cutting()
        self.costs = self.tower.costs(), self._behind()

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """`text_config`, tied only if config.json itself says so."""
        text, assumed = super().decoder_config(config)
        text.setdefault("model_type", "llama")
        check_fields(text, "text_config", model_type=("llama",))
        text["tie_word_embeddings"] = bool(config.get("tie_word_embeddings"))
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """`User:`, `Assistant:`, each turn ended by `<end_of_utterance>`."""
        return CHAT_TEMPLATE

    def picture_limits(self) -> list[str]:
        side, most = self.tiling.side, self.tiling.most
        if most == 1:
            return [f"squashed to {side} x {side} pixels, {self.rows} rows each"]
        return [
            f"the longer edge brought to {self.tiling.longest} pixels, in tiles of {side} x {side}",
            f"{self.rows} rows a tile, at most {most} x {most} tiles and one of the whole picture",
        ]

    def row_count(self, picture: Picture) -> int:
        return self.rows * self.tiling.count(picture.size)

    def picture_tokens(self, picture: Picture) -> list[int]:
        return self.tokens.block(self.tiling.grid(picture.size), self.rows)

    def tower_bytes(self, size: tuple[int, int]) -> int:
        costs, behind = self.costs
        count = self.tiling.count(size)
        together = self._together(count)
        rows = count * self.rows * self.connector.modality_projection.proj.weight.shape[0]
        made = rows * costs.dtype.size
        pixels = 12 * together * self.tiling.side**2
        most = pixels + self.tower.most_bytes(together, behind, self.cutting, costs)
        return most if together == count else max(made + most, 2 * made)

    def encode_image(self, picture: Picture) -> mx.array:
        tiles = self.tiling.cut(picture.pixels(), self.pixels.resample)
        together = self._together(len(tiles))

        def encoded(start: int) -> mx.array:
            pixels = self.pixels.normalised(tiles[start : start + together])
            rows: mx.array = self.connector(self.tower(pixels, self.cutting)).flatten(0, 1)
            return rows

        starts = range(0, len(tiles), together)
        return mx.concatenate(one_by_one(starts, encoded, several=len(starts) > 1))

    def _together(self, count: int) -> int:
        """How many of so many tiles are encoded at once."""
        return max(1, min(count, self.cutting.rows // self.tower.side**2))

    def _behind(self) -> int:
        """What a tile takes behind the tower's layers, in bytes."""
        norm = self.tower.post_layernorm
        return graph_bytes(
            lambda x: self.connector(norm(x)),
            mx.zeros((1, self.tower.side**2, norm.weight.size), norm.weight.dtype),
            modules=[norm, self.connector],
        )


def _rows(whole: dict[str, Any], side: int) -> int:
    """Rows of a tile of `side` x `side` patches. Raises `UnsupportedCheckpoint`, `BrokenConfig`."""
    positive(whole, "config", "scale_factor", "image_token_id")
    if side % whole["scale_factor"]:
        raise BrokenConfig(
            f"scale_factor {whole['scale_factor']} does not divide the {side} patches of a side"
        )
    if whole["image_token_id"] >= whole["text_config"]["vocab_size"]:
        raise UnsupportedCheckpoint(
            f"image_token_id {whole['image_token_id']} must be one of the decoder's "
            f"{whole['text_config']['vocab_size']} token ids"
        )
    return int((side // whole["scale_factor"]) ** 2)
