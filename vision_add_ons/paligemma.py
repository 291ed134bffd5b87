"""PaliGemma 1 and 2: a SigLIP tower, a linear projector, and prompts that see themselves whole.

Semantics: transformers' `PaliGemmaForConditionalGeneration`, `PaliGemmaProcessor` and
`SiglipImageProcessorPil`. Tower and projector are mlx-vlm's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from vision_add_ons.base import ExpandedPrompt, ImageSpan, Picture, VisionAddOn, token_places
from vision_add_ons.cache_views import BidirectionalView, Range
from vision_add_ons.configs import check_fields, positive, resolve_config
from vision_add_ons.errors import UnsupportedCheckpoint
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

IMAGE, BOS = "<image>", "<bos>"

CHAT_TEMPLATE = """\
{%- for message in messages if message['content'] is not string -%}
  {%- for part in message['content'] if part['type'] == 'image' -%}
    {{- '<image>' -}}
  {%- endfor -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}
  {{- message['content'] if message['content'] is string
      else message['content'] | map(attribute='text', default='') | join -}}
  {{- '\\n' -}}
{%- endfor -%}
"""


class PaliGemmaAddOn(VisionAddOn):
    """PaliGemma with Gemma 1 or Gemma 2 text.

    Each picture is squashed to the tower's square and gives one row per patch. In a prompt with
    pictures every token sees every other (prefix-LM), so such a prompt is run in one piece, and
    what was computed of it serves the same prompt alone. A prompt without pictures is plain
    Gemma text.

    The family answers single prompts, `<image>...<bos>text\\n`; it defines no turns. The default
    chat template joins them: all pictures first, then the text of every turn on a line of its own.
    """

    model_types = ("paligemma",)
    image_marks = (IMAGE,)

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load tower and projector from `folder`.

        Raises a `CheckpointError`: `UnsupportedCheckpoint` or `BrokenConfig` naming the field,
        `MissingWeight`, `UnexpectedWeight` or `UnexpectedShape` naming the tensor.
        """
        whole = resolve_config(config)
        vision, text = whole["vision_config"], whole["text_config"]
        check_siglip(vision)
        positive(whole, "config", "image_token_index")
        self.side = vision["image_size"]
        self.rows = (self.side // vision["patch_size"]) ** 2
        self.placeholder_id = self.image_token_id = whole["image_token_index"]
        if self.image_token_id >= text["vocab_size"]:
            raise UnsupportedCheckpoint(
                f"image_token_index {self.image_token_id} must be one of the decoder's "
                f"{text['vocab_size']} token ids"
            )
        self.bos_id = text["bos_token_id"]

        processor = read_processor_config(folder)
        check_square(processor, self.side)
        if processor.get("image_seq_length") not in (None, self.rows):
            raise UnsupportedCheckpoint(
                f"the image processor's image_seq_length is {processor['image_seq_length']}, but "
                f"the tower makes {self.rows} rows"
            )
        self.cutting = Cutting()
        self.pixels = Pixels.read(processor, Image.Resampling.BICUBIC, HALF_MEAN, HALF_STD)

        paligemma = import_mlx_vlm("paligemma.paligemma")
        vision["projection_dim"] = text["hidden_size"]
        sizes = paligemma.ModelConfig.from_dict({"vision_config": vision})
        self.tower = paligemma.VisionModel(sizes.vision_config).vision_model
        self.projector = paligemma.PaliGemmaMultiModalProjector(sizes)

        eps = vision["layer_norm_eps"]
        load_siglip(self.tower, self.projector, eps, folder, self.decoder_prefixes)
        self.costs = siglip_costs(self.tower, self.projector)

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        text, assumed = super().decoder_config(config)
        text.setdefault("model_type", "gemma")
        check_fields(text, "text_config", model_type=("gemma", "gemma2"))
        # Pictures make a prompt a prefix, and text without any is causal, whatever this says.
        text.pop("use_bidirectional_attention", None)
        if config.get("tie_word_embeddings") is False:
            text["tie_word_embeddings"] = False
        return text, assumed

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str:
        """All pictures, BOS, and the text of each turn with a line break after it."""
        return CHAT_TEMPLATE

    def picture_limits(self) -> list[str]:
        return [
            f"squashed to {self.side} x {self.side} pixels, {self.rows} rows each",
            "a prompt with pictures is run in one piece, and none of it serves a longer one",
        ]

    def prepare_text(self, text: str) -> str:
        """BOS behind the last `<image>`, where the text has none: there the processor puts it."""
        before, image, after = text.rpartition(IMAGE)
        return before + image + BOS + after if image and BOS not in text else text

    def expand_prompt(
        self,
        tokens: Sequence[int],
        pictures: Sequence[Picture],
        positions: Sequence[int] | None = None,
    ) -> ExpandedPrompt:
        """Pictures for which the prompt has no places go before all of it, BOS included."""
        if positions is None:
            places = token_places(tokens, self.placeholder_id)
            behind = places[-1] + 1 if places else 0
            if not places:
                positions = [0] * len(pictures)
            elif behind < len(tokens) and tokens[0] == tokens[behind] == self.bos_id:
                # The tokenizer's, which knows nothing of the one behind the pictures.
                tokens = tokens[1:]
        return super().expand_prompt(tokens, pictures, positions)

    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        return ((0, len(tokens)),)

    def cache_views(
        self,
        caches: Sequence[Any],
        prompt: ExpandedPrompt,
        encode: Callable[[Picture], mx.array] | None = None,
    ) -> list[Any]:
        return [PrefixView(cache, prompt.bidirectional) for cache in caches]

    def row_count(self, picture: Picture) -> int:
        return self.rows

    def tower_bytes(self, size: tuple[int, int]) -> int:
        return siglip_bytes(self.tower, self.costs, self.cutting)

    def encode_image(self, picture: Picture) -> mx.array:
        pixels = self.pixels(picture.pixels(), self.side, self.side)
        features = siglip_features(self.tower, pixels, self.cutting)
        rows: mx.array = self.projector(features)
        return rows

    def embed_tokens(self, text_model: nn.Module, tokens: mx.array) -> mx.array:
        """Scaled, as they enter the first layer; the pictures' rows go beside them as they are."""
        return text_model.model.embed(tokens)


class PrefixView(BidirectionalView):
    """A cache whose mask lets the prompt see itself whole, farther than Gemma 2's window reaches.

    As transformers composes it for PaliGemma: the window is for what comes after the prompt.
    """

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        [(_, end)] = self.ranges
        if self.cache.offset + N <= end:
            window_size = None
        return super().make_mask(N, return_array=return_array, window_size=window_size)
