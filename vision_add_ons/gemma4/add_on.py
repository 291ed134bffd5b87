"""The add-on itself: what of a checkpoint goes where, and one picture's way through it.

Semantics: transformers' `Gemma4ForConditionalGeneration` and `Gemma4Processor`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.base import ExpandedPrompt, ImageSpan, Picture, VisionAddOn
from vision_add_ons.cache_views import BidirectionalView, Range
from vision_add_ons.configs import check_fields, positive, resolve_config
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.gemma4.preprocessing import Squares
from vision_add_ons.gemma4.tower import (
    ClippedLinear,
    Gemma4Tower,
    Projector,
    most_bytes,
    tower_costs,
)
from vision_add_ons.tokenizer_file import check_token_id, named_tokens, token_ids
from vision_add_ons.vit_blocks import Cutting
from vision_add_ons.weights import (
    first_prefix,
    load_module,
    read_weights,
    refuse_others,
    with_prefix,
)

# As published, and as mlx-vlm converts.
TOWER = ("model.vision_tower.", "vision_tower.")
PROJECTOR = ("model.embed_vision.", "embed_vision.")
HEARING = ("model.audio_tower.", "audio_tower.", "model.embed_audio.", "embed_audio.")
"""Of sounds, which are not served."""
TOKENS = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] | trim -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {{- '\\n\\n<|image|>\\n\\n' if part['type'] == 'image' else part['text'] | trim -}}
    {%- endfor -%}
  {%- endif -%}
  {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}
"""


class Gemma4AddOn(VisionAddOn):
    """Gemma 4 with a tower: E2B, E4B, 26B and 31B.

    A picture keeps its shape, and each square of 48 x 48 pixels (in the published models) gives a
    row. The rows of one picture see each other whole where the config says so, in sliding layers
    alone.
    """

    model_types = ("gemma4",)
    image_marks = ("<|image|>", "<|video|>", "<|audio|>")
    # Whether rows see each other in layers of full attention, and where a window ends between them.
    everywhere: ClassVar[bool] = False

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load tower and projector from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `BrokenTokenizer` naming the token, `MissingWeight`, `UnexpectedWeight` or
        `UnexpectedShape` naming the tensor.
        """
        whole = resolve_config(config)
        vision, text = whole["vision_config"], whole["text_config"]
        if vision is None:
            raise UnsupportedCheckpoint("vision_config is absent, so there are no eyes to load")
        self.sees_itself = text["use_bidirectional_attention"] == "vision"
        self.pad_id = text["pad_token_id"]
        if type(self.pad_id) is not int:
            raise BrokenConfig(f"text_config.pad_token_id must be a token id, not {self.pad_id!r}")
        self._read_tokens(folder, whole)
        self.cutting = Cutting()
        weights = read_weights(folder)
        refuse_others(weights, (*self.own_prefixes(), *HEARING, *self.decoder_prefixes))
        self.load(folder, vision, text["hidden_size"], weights)

    def _read_tokens(self, folder: Path, whole: dict[str, Any]) -> None:
        positive(whole, "config", "image_token_id")
        names = list(named_tokens(folder, TOKENS).values())
        self.placeholder_id, self.begin_id, self.end_id = token_ids(folder, names)
        self.image_token_id = self.placeholder_id
        self.image_marks = (names[0], *self.image_marks[1:])
        check_token_id("image_token_id", whole["image_token_id"], names[0], self.image_token_id)
        others = (whole["video_token_id"], whole["audio_token_id"])
        self.video_ids, self.audio_ids = ([t] if type(t) is int else [] for t in others)

    @staticmethod
    def own_prefixes() -> tuple[str, ...]:
        """What the names of the weights begin with that `load` reads."""
        return (*TOWER, *PROJECTOR)

    def load(
        self, folder: Path, vision: dict[str, Any], width: int, weights: dict[str, mx.array]
    ) -> None:
        """Make what turns pictures into rows as wide as the decoder's."""
        self.squares = Squares.read(folder, vision)
        self.tower = Gemma4Tower(vision)
        positions = "position_embedding_size"
        self.squares.check_positions(positions, vision[positions], patches=True)
        self.projector = Projector(vision["hidden_size"], width, vision["rms_norm_eps"])
        where = first_prefix(weights, TOWER)
        named = with_prefix(weights, where)
        if not vision["use_clipped_linears"]:
            # transformers ignores them there, too.
            named = {n: w for n, w in named.items() if not n.endswith(ClippedLinear.BOUNDS)}
        load_module(self.tower, named, where)
        where = first_prefix(weights, PROJECTOR)
        load_module(self.projector, with_prefix(weights, where), where)
        self.costs = tower_costs(self.tower, self.projector)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        text, assumed = super().decoder_config(config)
        # Whatever it says, transformers takes the other halves for Gemma 4's own.
        check_fields(
            {"model_type": f"{cls.model_types[0]}_vision", **(config.get("vision_config") or {})},
            "vision_config",
            model_type=(f"{cls.model_types[0]}_vision",),
        )
        kind = f"{cls.model_types[0]}_text"
        text.setdefault("model_type", kind)
        check_fields(text, "text_config", model_type=(kind,))
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """Gemma 4's turns, without tools or thoughts."""
        return CHAT_TEMPLATE

    def prepare_decoder(self, text_model: nn.Module) -> None:
        """Have layers be given for rows what they are given for padding."""
        stand_ins = (self.placeholder_id, *self.video_ids, *self.audio_ids)
        text_model.model.look_up_padding_for(stand_ins, self.pad_id)

    def embed_tokens(self, text_model: nn.Module, tokens: mx.array) -> mx.array:
        """Scaled, as they enter the first layer."""
        embedded: mx.array = text_model.model.embed(tokens)
        return embedded

    def picture_limits(self) -> list[str]:
        side, most = self.squares.side, self.squares.most_rows
        return [f"a row for each {side} x {side} pixels, up to {most} rows, which small ones fill"]

    def row_count(self, picture: Picture) -> int:
        """One row per square."""
        lines, columns = self.squares.grid(picture.size)
        return lines * columns

    def picture_tokens(self, picture: Picture) -> list[int]:
        return [self.begin_id, *super().picture_tokens(picture), self.end_id]

    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        """The rows of each picture, without the tokens around them."""
        if not self.sees_itself:
            return ()
        return tuple((span.start + 1, span.end - 1) for span in spans)

    def cache_views(
        self,
        caches: Sequence[Any],
        prompt: ExpandedPrompt,
        encode: Callable[[Picture], mx.array] | None = None,
    ) -> list[Any]:
        if not prompt.bidirectional:
            return list(caches)
        return [
            BidirectionalView(cache, prompt.bidirectional, beyond_window=self.everywhere)
            if self.everywhere or hasattr(cache, "max_size")
            else cache
            for cache in caches
        ]

    def tower_bytes(self, size: tuple[int, int]) -> int:
        return most_bytes(self.tower, self.costs, self.squares.grid(size), self.cutting)

    def encode_image(self, picture: Picture) -> mx.array:
        squares = self.squares
        grid = squares.grid(picture.size)
        patches = squares.patches(squares.cut(picture.pixels()))
        rows: mx.array = self.projector(
            self.tower(patches, squares.pixels.normalised, grid, self.cutting)
        )
        return rows
