"""The add-on of Pixtral.

Semantics: transformers' `LlavaForConditionalGeneration` with a Pixtral tower, `PixtralProcessor`
and `PixtralImageProcessorPil`.
"""

import math
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.configs import check_fields, feature_states, resolve_config
from vision_add_ons.errors import (
    BrokenConfig,
    ImageError,
)
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.pixels import CLIP_MEAN, CLIP_STD, Pixels, read_processor_config
from vision_add_ons.pixtral.config import (
    half_config,
    size_limit,
)
from vision_add_ons.pixtral.prompt import CHAT_TEMPLATE, TOKENS, image_tokens
from vision_add_ons.pixtral.tower import ACTIVATIONS, PixtralTower
from vision_add_ons.tower_bytes import most_of, per_row
from vision_add_ons.vit_blocks import Cutting
from vision_add_ons.weights import (
    channels_last,
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As transformers and mlx-vlm write them, and as transformers 5 has them in memory.
TOWER = ("vision_tower.vision_model.", "model.vision_tower.", "vision_tower.")
PROJECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")

# Of a whole model, `pixtral` is mlx-vlm's name for such a `llava`; these are its defaults.
PIXTRAL_DEFAULTS = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}


class Projector(nn.Module):
    """Two layers from the tower's width to the decoder's."""

    def __init__(self, whole: dict[str, Any], inputs: int) -> None:
        super().__init__()
        width, bias = whole["text_config"]["hidden_size"], whole["multimodal_projector_bias"]
        self.activation = ACTIVATIONS[whole["projector_hidden_act"]]
        self.linear_1 = nn.Linear(inputs, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(self.activation(self.linear_1(x)))


class PixtralAddOn(VisionAddOn):
    """Pixtral, and LLaVA with Pixtral's tower.

    A picture keeps its shape, and gives one row for each patch. In the prompt, a break token
    follows each line of patches, and an end token the last.
    """

    model_types: ClassVar[tuple[str, ...]] = ("pixtral", "llava")
    decoders: ClassVar[tuple[str, ...]] = ("mistral", "llama")
    projector_class: ClassVar[type[Projector]] = Projector

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load the tower and the projector from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `BrokenTokenizer` naming the token, `MissingWeight`, `UnexpectedWeight` or
        `UnexpectedShape` naming the tensor.
        """
        whole = self.resolve(config)
        vision = whole["vision_config"]
        self.tower = PixtralTower(vision)
        self.check(whole)
        self.states = feature_states(whole["vision_feature_layer"], vision["num_hidden_layers"])
        self.projector = self.projector_class(whole, len(self.states) * vision["hidden_size"])

        patch, merged = vision["patch_size"], whole.get("spatial_merge_size", 1)
        self.cell = patch * merged
        processor = read_json_if_there(folder / "processor_config.json")
        check_fields(
            {"patch_size": patch, "spatial_merge_size": merged, **processor},
            "processor_config",
            patch_size=(patch,),
            spatial_merge_size=(merged,),
        )
        self.image_token_id = whole["image_token_index"]
        self.placeholder_id, self.break_id, self.end_id = image_tokens(folder, processor)
        self.image_marks = (processor.get("image_token", TOKENS["image_token"]),)
        if self.image_token_id != self.placeholder_id:
            raise BrokenConfig(
                f"image_token_index is {self.image_token_id}, but the tokenizer's image token is "
                f"{self.placeholder_id}"
            )
        settings = read_processor_config(folder)
        check_fields(settings, "preprocessor_config", do_center_crop=(None, False))
        size = settings.get("size")
        self.limit = size_limit({"longest_edge": 1024} if size is None else size)
        if min(self.limit) < self.cell:
            raise BrokenConfig(
                f"the image processor's size {self.limit} is smaller than one row's "
                f"{self.cell} x {self.cell} pixels"
            )
        self.cutting = Cutting()
        self.pixels = Pixels.read(settings, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD)
        self._load(read_weights(folder))

    def _load(self, weights: dict[str, mx.array]) -> None:
        tower, projector = first_prefix(weights, TOWER), first_prefix(weights, PROJECTOR)
        refuse_others(weights, (tower, projector, *self.decoder_prefixes))
        named = channels_last(with_prefix(weights, tower), "patch_conv.weight", channels=3)
        load_module(self.tower, named, tower)
        load_module(self.projector, with_prefix(weights, projector), projector)
        costs = self.tower.costs()
        side = 4 * self.cell // self.tower.patch_conv.weight.shape[1]
        width = len(self.states) * self.tower.patch_conv.weight.shape[0]
        features = mx.zeros((side, side, width), costs.dtype)
        self.costs = costs, per_row(self.projector, features, modules=[self.projector])

    @classmethod
    def resolve(cls, config: dict[str, Any]) -> dict[str, Any]:
        """config.json with every field that it leaves out."""
        text, _ = cls.decoder_config(config)
        vision = half_config(config, "vision_config")
        # Beforehand: what other towers' fields mean is not for us to judge.
        check_fields(vision, "vision_config", model_type=("pixtral",))
        if config["model_type"] == "pixtral":
            config = {**PIXTRAL_DEFAULTS, **config, "model_type": "llava"}
        return resolve_config({**config, "text_config": text, "vision_config": vision})

    @classmethod
    def check(cls, whole: dict[str, Any]) -> None:
        """Refuse the choices beside the tower that are not served."""
        check_fields(
            whole,
            "config",
            projector_hidden_act=tuple(ACTIVATIONS),
            vision_feature_select_strategy=("full",),
        )

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """`text_config`, tied if either of the two configs says so."""
        super().decoder_config(config)  # raises where there is none
        text = half_config(config, "text_config")
        check_fields(text, "text_config", model_type=cls.decoders)
        if config.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True
        return text, []

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """Mistral's `[INST]`, with the system text in the last of them, as it was trained."""
        return CHAT_TEMPLATE

    def picture_limits(self) -> list[str]:
        width, height = self.limit
        lines, columns = self.grid(self.limit)
        return [
            f"keep their shape, within {width} x {height} pixels",
            f"a row for each {self.cell} x {self.cell} pixels, at most {lines * columns}",
        ]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """How many lines of how many rows a picture of this width and height becomes.

        Raises `ImageError` for one that shrinks to nothing.
        """
        ratio = max(side / limit for side, limit in zip(size, self.limit, strict=True))
        width, height = (math.floor(side / ratio) if ratio > 1 else side for side in size)
        if not (width and height):
            raise ImageError(
                f"a picture of {size[0]}x{size[1]} pixels is too thin to be shrunk to "
                f"{self.limit[0]}x{self.limit[1]}; crop it first"
            )
        return math.ceil(height / self.cell), math.ceil(width / self.cell)

    def row_count(self, picture: Picture) -> int:
        """One row a patch. Raises `ImageError` for a picture too thin to be shrunk."""
        return math.prod(self.grid(picture.size))

    def picture_tokens(self, picture: Picture) -> list[int]:
        lines, columns = self.grid(picture.size)
        line = [self.placeholder_id] * columns + [self.break_id]
        return [*(line * lines)[:-1], self.end_id]

    def tower_bytes(self, size: tuple[int, int]) -> int:
        pixels = math.prod(self.grid(size)) * self.cell**2
        total = pixels // self.tower.patch_conv.weight.shape[1] ** 2
        costs, projected = self.costs
        features = total * len(self.states) * costs.row
        # The three values of a pixel in float32 are there all the time.
        return 12 * pixels + most_of(
            total,
            self.cutting,
            self.tower.most_bytes(total, self.states, self.cutting, costs),
            2 * features + total * projected,
        )

    def encode_image(self, picture: Picture) -> mx.array:
        lines, columns = self.grid(picture.size)
        pixels = self.pixels(picture.pixels(), columns * self.cell, lines * self.cell)
        return self.projector(self.tower(pixels, self.states, self.cutting)).flatten(0, 1)
