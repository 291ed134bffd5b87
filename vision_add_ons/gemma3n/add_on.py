"""The add-on for Gemma 3n.

Semantics: transformers' `Gemma3nForConditionalGeneration`, `Gemma3nProcessor` and
`SiglipImageProcessorPil`. What layers are given for each token beside its embedding follows from
the ids, and the decoder looks it up: ids of pictures have none there, as the reference has it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.configs import check_fields, positive, resolve_config
from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.gemma3 import BEGIN as GEMMA3_IMAGE
from vision_add_ons.gemma3 import CHAT_TEMPLATE
from vision_add_ons.gemma3n.config import WIDTH, TowerConfig
from vision_add_ons.gemma3n.tower import MobileNetV5, most_bytes
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.pixels import (
    HALF_MEAN,
    HALF_STD,
    USUAL_SIDE,
    Pixels,
    check_square,
    read_processor_config,
    scaled_alone,
)
from vision_add_ons.weights import (
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

BEGIN, ROW, END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
SOUND = "<audio_soft_token>"

# As published, and as mlx-vlm writes them.
TOWER = ("model.vision_tower.timm_model.", "vision_tower.timm_model.")
VISION = ("model.embed_vision.", "embed_vision.")
AUDIO = ("model.embed_audio.", "embed_audio.")
UNUSED = ("model.audio_tower.", "audio_tower.")


class Embedder(nn.Module):
    """What is not text in the decoder's space: tokens of another vocabulary, and features."""

    def __init__(self, part: dict[str, Any], width: int) -> None:
        super().__init__()
        inputs, self.eps = part["hidden_size"], part["rms_norm_eps"]
        self.embedding = nn.Embedding(part["vocab_size"], inputs)
        self.hard_embedding_norm = nn.RMSNorm(inputs, self.eps)
        self.soft_embedding_norm = nn.RMSNorm(inputs, self.eps)
        self.embedding_projection = nn.Linear(inputs, width, bias=False)

    def __call__(self, features: mx.array) -> mx.array:
        """From [n, inputs] to [n, width]."""
        return self._projected(self.soft_embedding_norm(features))

    def tokens(self) -> mx.array:
        """Of all tokens in their order, [n, width]."""
        ids = mx.arange(self.embedding.weight.shape[0])
        return self._projected(self.hard_embedding_norm(self.embedding(ids)))

    def _projected(self, normed: mx.array) -> mx.array:
        return mx.fast.rms_norm(self.embedding_projection(normed), None, self.eps)


class Gemma3nAddOn(VisionAddOn):
    """Gemma 3n, E2B and E4B, without its ears.

    Each picture is squashed to a square, whatever the tower's size, and gives
    `vision_soft_tokens_per_image` rows, between `<start_of_image>` and `<end_of_image>`.
    """

    model_types = ("gemma3n",)
    image_marks = (ROW, SOUND)
    decoder_prefixes: ClassVar[Mapping[str, str | None]] = {
        "model.language_model.": "model.",
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "lm_head.": "lm_head.",
    }

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load tower and embedders from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape` naming the tensor.
        """
        whole = resolve_config(config)
        vision, audio, text = (whole[f"{part}_config"] for part in ("vision", "audio", "text"))
        sizes = TowerConfig.read(vision)
        for part, kind in (("vision_config", "gemma3n_vision"), ("audio_config", "gemma3n_audio")):
            # Whatever a config says, transformers takes these.
            check_fields({"model_type": kind, **(config.get(part) or {})}, part, model_type=(kind,))
        self.rows = sizes.side**2
        check_fields(whole, "config", vision_soft_tokens_per_image=(self.rows,))
        self.first_id = _first_id(vision, audio, text)
        positive(whole, "config", "image_token_id", "audio_token_id")
        self.placeholder_id = self.image_token_id = whole["image_token_id"]
        self.audio_ids = (whole["audio_token_id"],)
        if self.placeholder_id >= text["vocab_size"]:
            raise UnsupportedCheckpoint(
                f"image_token_id {self.placeholder_id} must be one of the decoder's "
                f"{text['vocab_size']} token ids"
            )
        self.side, self.pixels = _picture_settings(folder, sizes)

        weights = read_weights(folder)
        refuse_others(weights, (*TOWER, *VISION, *AUDIO, *UNUSED, *self.decoder_prefixes))
        self.tower = MobileNetV5(sizes)
        where = first_prefix(weights, TOWER)
        load_module(self.tower, _channels_last(with_prefix(weights, where), sizes.stem), where)
        self.embedder, ears = (Embedder(part, text["hidden_size"]) for part in (vision, audio))
        for module, prefixes in ((self.embedder, VISION), (ears, AUDIO)):
            where = first_prefix(weights, prefixes)
            load_module(module, with_prefix(weights, where), where)
        self.costs = most_bytes(self.tower, self.embedder, self.side)
        self.others = nn.Module()  # read with the other weights
        self.others.weight = mx.concatenate([self.embedder.tokens(), ears.tokens()])

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        text, assumed = super().decoder_config(config)
        text.setdefault("model_type", "gemma3n_text")
        check_fields(text, "text_config", model_type=("gemma3n_text",))
        if "tie_word_embeddings" in config:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """Gemma's turns, the system text at the start of the first."""
        return CHAT_TEMPLATE.replace(GEMMA3_IMAGE, ROW)

    def prepare_text(self, text: str) -> str:
        """Put each `<image_soft_token>` between its begin and its end, with line breaks around.

        Before the text is tokenised, since line breaks next to each other become one token.
        """
        return text.replace(ROW, f"\n\n{BEGIN}{ROW}{END}\n\n")

    def prepare_decoder(self, text_model: nn.Module) -> None:
        text_model.model.embed_others(self.first_id, self.others.weight)

    def picture_limits(self) -> list[str]:
        return [f"squashed to {self.side} x {self.side} pixels, {self.rows} rows each"]

    def row_count(self, picture: Picture) -> int:
        return self.rows

    def tower_bytes(self, size: tuple[int, int]) -> int:
        return self.costs

    def encode_image(self, picture: Picture) -> mx.array:
        features = self.tower(self.pixels(picture.pixels(), self.side, self.side))
        return self.embedder(features.flatten(0, 1) * WIDTH**0.5)

    def embed_tokens(self, text_model: nn.Module, tokens: mx.array) -> mx.array:
        """Scaled, as they enter the first layer; the pictures' rows go beside them as they are."""
        return text_model.model.embed(tokens)


def _first_id(vision: dict[str, Any], audio: dict[str, Any], text: dict[str, Any]) -> int:
    """The first token id that is not looked up among the text's."""
    for part, where in ((vision, "vision_config"), (audio, "audio_config")):
        positive(part, where, "vocab_size", "vocab_offset", "hidden_size")
    first, behind = vision["vocab_offset"], vision["vocab_offset"] + vision["vocab_size"]
    if audio["vocab_offset"] != behind:
        raise UnsupportedCheckpoint(
            f"audio_config.vocab_offset {audio['vocab_offset']} must be {behind}, behind the "
            "pictures' ids"
        )
    if behind + audio["vocab_size"] < text["vocab_size"]:
        raise UnsupportedCheckpoint(
            f"audio_config.vocab_size {audio['vocab_size']} leaves ids of the decoder's "
            f"{text['vocab_size']} that stand for nothing"
        )
    return int(first)


def _picture_settings(folder: Path, sizes: TowerConfig) -> tuple[int, Pixels]:
    """The side of the square that pictures are brought to, and how."""
    saved = read_processor_config(folder)
    size = saved.get("size") or {"height": USUAL_SIDE, "width": USUAL_SIDE}
    side = size.get("height") if isinstance(size, dict) else size
    if type(side) is not int or side < 1 or side % sizes.unit:
        raise UnsupportedCheckpoint(
            f"the image processor's size is {size!r}, but the tower takes squares of multiples "
            f"of {sizes.unit} pixels"
        )
    check_square(saved, side)
    rows = read_json_if_there(folder / "processor_config.json").get("image_seq_length")
    if rows not in (None, sizes.side**2):
        raise UnsupportedCheckpoint(
            f"the processor's image_seq_length is {rows!r}, but a picture has {sizes.side**2} rows"
        )
    return side, Pixels.read(scaled_alone(saved), Image.Resampling.BICUBIC, HALF_MEAN, HALF_STD)


def _channels_last(weights: dict[str, mx.array], stem: int) -> dict[str, mx.array]:
    """The tower's weights with the channels of convolutions at the end, if they are not there."""
    first = weights.get("blocks.0.0.conv_exp.weight")
    if first is None or first.ndim != 4 or first.shape[1] != stem:
        return weights
    return {n: mx.moveaxis(w, 1, -1) if w.ndim == 4 else w for n, w in weights.items()}
