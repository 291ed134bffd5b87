"""What a vision add-on is: the class a model family implements, and the types it exchanges.

An add-on turns pictures into rows of the decoder's embedding space and says where in the prompt
they stand. It holds weights and nothing else: no state of any request.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from vision_add_ons.errors import ImageCountError, UnsupportedCheckpoint


class Picture(Protocol):
    """One decoded picture, as the engine hands it to an add-on."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, EXIF orientation applied."""

    @property
    def digest(self) -> str:
        """SHA-256 of the decoded pixels and their size; equal pictures have equal digests."""

    def pixels(self) -> Image.Image:
        """The picture in mode RGB, not to be changed."""

    def release(self) -> None:
        """Drop the decoded pixels; `pixels` decodes them again if they are wanted again."""


@dataclass(frozen=True)
class ImageSpan:
    """Where one picture's rows stand: `length` placeholder ids from index `start` on."""

    start: int
    length: int
    picture: Picture

    @property
    def end(self) -> int:
        return self.start + self.length

    def shifted(self, by: int) -> "ImageSpan":
        return ImageSpan(self.start + by, self.length, self.picture)


@dataclass(frozen=True)
class ExpandedPrompt:
    """Token ids with one placeholder id per embedding row, and the spans in order of `start`."""

    tokens: list[int]
    spans: tuple[ImageSpan, ...]


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the decoder is given instead of looking the token ids up itself.

    `input_embeddings` has shape [len(prompt_tokens), hidden_size], in the dtype of the decoder's
    own embeddings.
    """

    input_embeddings: mx.array


class VisionAddOn(ABC):
    """A model family's eyes. Built once per loaded checkpoint, on the engine's thread.

    A family implements `__init__`, `row_count` and `encode_image`, and overrides what is
    different about its prompts and its config. `compute_embeddings` does the merging.
    """

    model_types: ClassVar[tuple[str, ...]]
    """The values of config.json's `model_type` that this add-on serves."""

    decoder_prefixes: ClassVar[tuple[str, ...]] = ("language_model.",)
    """Prefixes of the decoder's weight names; what follows them is the name mlx-lm expects."""

    placeholder_id: int
    """The token id that stands in the prompt for one embedding row."""

    @abstractmethod
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load the towers and the projector from `folder`.

        Raises `MissingWeight`, `UnexpectedShape` or `UnsupportedCheckpoint`.
        """

    @classmethod
    def decoder_config(cls, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The decoder's own config, and one line for each value that had to be assumed."""
        if not isinstance(config.get("text_config"), dict):
            raise UnsupportedCheckpoint(
                f"config.json of model type {config.get('model_type')!r} has no text_config"
            )
        return dict(config["text_config"]), []

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str | None:
        """The Jinja chat template to use when the checkpoint brings none."""
        return None

    def template_message(self, role: str, text: str, markers: Sequence[str]) -> dict[str, Any]:
        """One message in the form that the chat template reads.

        `markers` are strings, one per picture, unique to the request. A family whose template
        knows nothing of pictures puts them where the rows go; their places come back to
        `expand_prompt` as `positions`. The default leaves it to the template to write the
        family's own image token.
        """
        if not markers:
            return {"role": role, "content": text}
        content = [{"type": "image"} for _ in markers] + [{"type": "text", "text": text}]
        return {"role": role, "content": content}

    @abstractmethod
    def row_count(self, picture: Picture) -> int:
        """How many embedding rows `encode_image` makes of this picture, without encoding it."""

    def expand_prompt(
        self, tokens: list[int], pictures: Sequence[Picture], positions: Sequence[int]
    ) -> ExpandedPrompt:
        """Put `row_count` placeholder ids for each picture into `tokens`.

        `positions` are the indices in `tokens` before which each picture's rows belong, in
        ascending order: one per picture. Raises `ImageCountError` if the numbers disagree.
        """
        if len(positions) != len(pictures):
            raise ImageCountError(
                f"the prompt has places for {len(positions)} pictures but {len(pictures)} were "
                "given; give one picture for each place"
            )
        expanded: list[int] = []
        spans = []
        done = 0
        for picture, position in zip(pictures, positions, strict=True):
            expanded += tokens[done:position]
            done = position
            span = ImageSpan(len(expanded), self.row_count(picture), picture)
            expanded += [self.placeholder_id] * span.length
            spans.append(span)
        return ExpandedPrompt(expanded + tokens[done:], tuple(spans))

    @abstractmethod
    def encode_image(self, picture: Picture) -> mx.array:
        """The rows of one picture, shape [row_count, hidden_size]."""

    def embed_tokens(self, text_model: nn.Module, tokens: mx.array) -> mx.array:
        """The decoder's own embeddings of `tokens`, shape [len(tokens), hidden_size]."""
        return text_model.model.embed_tokens(tokens)

    def compute_embeddings(
        self, text_model: nn.Module, prompt_tokens: mx.array, images: Sequence[ImageSpan]
    ) -> PromptEmbeddings:
        """Embed `prompt_tokens` and put each picture's rows in the place of its span.

        `prompt_tokens` has shape [n]; the spans in `images` count from its first element and lie
        wholly within it. Raises `ImageCountError` if a span does not fit or its length is not
        the number of rows that the picture makes.
        """
        parts = []
        done = 0
        embeddings = self.embed_tokens(text_model, prompt_tokens)
        for span in images:
            rows = self.encode_image(span.picture)
            if rows.shape[0] != span.length or span.start < done or span.end > len(prompt_tokens):
                raise ImageCountError(
                    f"{rows.shape[0]} rows do not fit the {span.length} placeholders at "
                    f"{span.start} of a prompt of {len(prompt_tokens)} tokens"
                )
            parts += [embeddings[done : span.start], rows.astype(embeddings.dtype)]
            done = span.end
        parts.append(embeddings[done:])
        return PromptEmbeddings(mx.concatenate(parts, axis=0))
