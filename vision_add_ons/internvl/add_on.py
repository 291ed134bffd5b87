"""The add-on of InternVL 3 and 3.5.

Semantics: transformers' `InternVLForConditionalGeneration`, `InternVLProcessor` and
`GotOcr2ImageProcessorPil`.
"""

from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx

from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.chat_ml import chat_ml
from vision_add_ons.configs import check_fields, feature_states, resolve_config
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.graph_bytes import graph_bytes
from vision_add_ons.internvl.tiles import Tiles
from vision_add_ons.internvl.tower import InternVLTower, Projector
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.tokenizer_file import token_ids, tokens_of
from vision_add_ons.vit_blocks import Cutting, one_by_one
from vision_add_ons.weights import (
    channels_last,
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As published and as converters write them, and as transformers 5 has them in memory.
TOWER = ("vision_tower.", "model.vision_tower.")
PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")
KERNEL = "embeddings.patch_embeddings.projection.weight"

START, ROW, END, VIDEO = "<img>", "<IMG_CONTEXT>", "</img>", "<video>"

CHAT_TEMPLATE = chat_ml(r"<IMG_CONTEXT>\n")


class InternVLAddOn(VisionAddOn):
    """InternVL 3 and 3.5, for pictures; not for videos.

    A picture is squashed to the grid of square tiles that is nearest to its shape, and seen once
    more as a whole in one of them. Each tile gives the same number of rows; all of a picture's
    stand between `<img>` and `</img>`.
    """

    model_types = ("internvl",)
    decoders: ClassVar[tuple[str, ...]] = ("qwen2", "qwen3", "qwen3_moe", "llama")
    image_marks = (ROW, VIDEO)

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load tower and projector from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `BrokenTokenizer` naming the token, `MissingWeight`, `UnexpectedWeight` or
        `UnexpectedShape` naming the tensor.
        """
        _check_tower_type(config)
        whole = resolve_config(config)
        vision, width = whole["vision_config"], whole["text_config"]["hidden_size"]
        self.tower = InternVLTower(vision)
        self.state = _state(whole, vision["num_hidden_layers"])
        merged = _merged(whole, self.tower.grid)
        self.projector = Projector(vision["hidden_size"], merged, width)
        self.rows = (self.tower.grid // merged) ** 2
        processor = read_json_if_there(folder / "processor_config.json")
        given = {"image_seq_length": 256, **processor}
        check_fields(given, "processor_config", image_seq_length=(self.rows,))

        self.placeholder_id = self.image_token_id = whole["image_token_id"]
        self.start_id, self.end_id, self.video_ids = self._marks(folder)
        # Four of the published tiles, or a large one in pieces.
        self.cutting = Cutting(rows=4100)
        self.tiles = Tiles.read(folder, self.tower.side)
        self._load(read_weights(folder))

    def _marks(self, folder: Path) -> tuple[int, int, list[int]]:
        """The ids of what stands around a picture's rows, and of a video's place, if any."""
        start, row, end = token_ids(folder, (START, ROW, END), "fetch it again")
        if self.placeholder_id != row:
            raise BrokenConfig(
                f"image_token_id is {self.placeholder_id}, but the tokenizer's {ROW} is {row}"
            )
        known = tokens_of(folder)
        return start, end, [known[VIDEO]] if VIDEO in known else []

    def _load(self, weights: dict[str, mx.array]) -> None:
        tower, projector = first_prefix(weights, TOWER), first_prefix(weights, PROJECTOR)
        refuse_others(weights, (tower, projector, *self.decoder_prefixes))
        load_module(self.tower, channels_last(with_prefix(weights, tower), KERNEL, 3), tower)
        load_module(self.projector, with_prefix(weights, projector), projector)
        self.costs = self.tower.costs()
        grid, width = self.tower.grid, self.costs.row // self.costs.dtype.size
        one = mx.zeros((1, grid, grid, width), self.costs.dtype)
        self.behind = graph_bytes(self.projector, one, modules=[self.projector])
        self.made = self.rows * self.projector.linear_2.bias.nbytes

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """`text_config`, tied as the whole config says."""
        _check_tower_type(config)
        text, assumed = super().decoder_config(config)
        text = {"model_type": "qwen2", **text}
        check_fields(text, "text_config", model_type=cls.decoders)
        text["tie_word_embeddings"] = resolve_config(config)["tie_word_embeddings"]
        for field in ("rope_parameters", "rope_scaling"):
            rope = text.get(field)
            if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "dynamic":
                # Plain up to max_position_embeddings, which is where the context ends.
                theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
                text[field] = {"rope_type": "default", **theta}
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """ChatML, a line break behind each picture."""
        return CHAT_TEMPLATE

    def picture_limits(self) -> list[str]:
        side, most = self.tiles.side, self.tiles.most
        if most == 1:
            return [f"squashed to {side} x {side} pixels, {self.rows} rows each"]
        return [
            f"squashed to at most {most} tiles of {side} x {side} pixels, and the whole to another",
            f"{self.rows} rows a tile, at most {self.rows * (most + 1)} a picture",
        ]

    def row_count(self, picture: Picture) -> int:
        return self.rows * self.tiles.count(picture.size)

    def picture_tokens(self, picture: Picture) -> list[int]:
        return [self.start_id, *super().picture_tokens(picture), self.end_id]

    def tower_bytes(self, size: tuple[int, int]) -> int:
        count = self.tiles.count(size)
        together = min(count, self.tower.at_once(self.cutting))
        most = max(
            self.tower.most_bytes(tiles, self.state, self.behind, self.cutting, self.costs)
            for tiles in {together, count % together or together}
        )
        return max(most + count * self.made, 2 * count * self.made)

    def encode_image(self, picture: Picture) -> mx.array:
        tiles = self.tiles.cut(picture.pixels())
        together = self.tower.at_once(self.cutting)

        def encoded(start: int) -> mx.array:
            some = self.tiles.pixels.normalised(tiles[start : start + together])
            rows: mx.array = self.projector(self.tower(some, self.state, self.cutting))
            return rows

        starts = range(0, len(tiles), together)
        return mx.concatenate(one_by_one(starts, encoded, several=len(starts) > 1))


def _check_tower_type(config: dict[str, Any]) -> None:
    """Of the config as it stands: what other towers' fields mean is not for us to judge."""
    vision = config.get("vision_config") or {}
    check_fields(vision, "vision_config", model_type=(None, "internvl_vision"))


def _state(whole: dict[str, Any], layers: int) -> int:
    """After how many layers the features are taken."""
    layer = whole["vision_feature_layer"]
    if isinstance(layer, list):
        raise UnsupportedCheckpoint(f"vision_feature_layer {layer} is a list, not one layer")
    return feature_states(layer, layers)[0]


def _merged(whole: dict[str, Any], grid: int) -> int:
    """How many patches a side become a row."""
    check_fields(
        whole,
        "config",
        downsample_ratio=(1.0, 0.5, 0.25),
        projector_hidden_act=("gelu",),
        vision_feature_select_strategy=("default",),
    )
    merged = round(1 / whole["downsample_ratio"])
    if grid % merged:
        raise BrokenConfig(
            f"downsample_ratio {whole['downsample_ratio']} does not divide {grid} x {grid} patches"
        )
    return merged
