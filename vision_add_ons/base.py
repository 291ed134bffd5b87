"""What a vision add-on is: the class a model family implements, and the types it exchanges.

An add-on turns pictures into rows of the decoder's embedding space and says where in the prompt
they stand. It holds weights and nothing else: no state of any request.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from vision_add_ons.cache_views import BidirectionalView, Range
from vision_add_ons.errors import ImageCountError, PromptError, UnsupportedCheckpoint
from vision_add_ons.token_ids import TokenIds


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
    """Where one `picture` stands in the prompt: `length` tokens from index `start` on.

    Its rows take the places of the placeholder ids among them, which may be all.
    """

    start: int
    length: int
    picture: Picture

    @property
    def end(self) -> int:
        """The index behind its last token."""
        return self.start + self.length

    def shifted(self, by: int) -> "ImageSpan":
        """The same picture `by` tokens later."""
        return ImageSpan(self.start + by, self.length, self.picture)


@dataclass(frozen=True)
class ExpandedPrompt:
    """Where a prompt's pictures go."""

    tokens: Sequence[int]
    """Token ids, one placeholder id per embedding row among them; kept as `TokenIds`."""
    spans: tuple[ImageSpan, ...] = ()
    """The pictures, in order of `start`."""
    bidirectional: tuple[Range, ...] = ()
    """Ranges within which tokens see each other whole, in ascending order; else they see only
    what stands before them. Such a range is run in one piece, and stored and reused as one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", TokenIds.joined([self.tokens]))


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the decoder is given instead of looking the token ids up itself.

    `input_embeddings` has shape [len(prompt_tokens), hidden_size], in the dtype of the decoder's
    own embeddings. None where it looks the ids up all the same, and the views of the KV caches
    bring the rows.
    """

    input_embeddings: mx.array | None


class VisionAddOn(ABC):
    """A model family's eyes. Built once per loaded checkpoint, on the engine's thread.

    A family implements `__init__`, `row_count` and `encode_image`, and overrides what is
    different about its prompts and its config. `compute_embeddings` does the merging.
    """

    model_types: ClassVar[tuple[str, ...]]
    """The values of config.json's `model_type` that this add-on serves."""

    decoder_prefixes: ClassVar[Mapping[str, str | None]] = {
        "language_model.": "",
        "model.language_model.": "model.",
        "lm_head.": "lm_head.",
    }
    """What precedes the decoder's weight names, and what mlx-lm's names have in its place.

    The first prefix that fits decides; names with none, or with None, are not the decoder's.
    """

    placeholder_id: int
    """The token id that stands in the prompt for one embedding row."""

    image_token_id: int | None = None
    """The token id by which a prompt marks a picture's place; None for families without one."""

    image_marks: tuple[str, ...] = ()
    """Texts that become such tokens, first the one that stands for a picture in a raw prompt.

    In a conversation, what somebody wrote marks nothing: the tokens of such a text in a message
    are tokens like any others. With none listed, the text of `image_token_id` is taken."""

    video_ids: Sequence[int] = ()
    """The token ids by which a prompt marks a video's place: such prompts are refused."""

    audio_ids: Sequence[int] = ()
    """The same of a sound's place."""

    features: int = 0
    """How many times `hidden_size` columns `encode_image` gives behind the first `hidden_size`."""

    images_at_once: int = 1
    """How many images `encode_images` is asked for at once, at most."""

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
    def published_name(cls, name: str) -> str:
        """What the family's published checkpoints call a tensor that this add-on also reads as
        `name`."""
        return name

    @classmethod
    def published_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """config.json as it goes with those names."""
        return config

    @classmethod
    def default_chat_template(cls, config: dict[str, Any], folder: Path) -> str | None:
        """The Jinja chat template to use when the checkpoint brings none."""
        return None

    def place_images(self, message: dict[str, Any], markers: Sequence[str]) -> dict[str, Any]:
        """A message with images, as the chat template reads it.

        `message` has a `role`, a `content`, and whatever else the conversation gives it. The
        content is a list of `{"type": "text", "text": ...}` and `{"type": "image"}` in their order.
        `markers` are texts, one per image, that stand nowhere else in the conversation.

        The default returns the message as it is: the template writes the family's image token for
        each image. A family whose template knows nothing of images puts the markers where the
        rows go: `with_markers` puts one in each image's place. They are taken out of the prompt,
        and where they stood comes to `expand_prompt` as `positions`. All markers are to be in the
        prompt, in order, or none. A list of texts and images is then given to the template in
        whatever form it reads; another content, and other keys, are given to it as they are.
        """
        return message

    def prepare_text(self, text: str) -> str:
        """What the family's own processor does to a whole prompt before it is tokenised."""
        return text

    def prepare_decoder(self, text_model: nn.Module) -> None:  # noqa: B027 - most need nothing
        """Replace parts of this loaded decoder that could not serve the family's pictures.

        Text alone must go through it unchanged, to the last bit.
        """

    def picture_limits(self) -> list[str]:
        """What pictures become and where their limits are, a line each, for load reports."""
        return []

    @abstractmethod
    def row_count(self, picture: Picture) -> int:
        """How many embedding rows `encode_image` makes of this picture, without encoding it."""

    def picture_tokens(self, picture: Picture) -> list[int]:
        """What stands in the prompt for one picture: `row_count` placeholders, and more or not."""
        return [self.placeholder_id] * self.row_count(picture)

    def expand_prompt(
        self,
        tokens: Sequence[int],
        pictures: Sequence[Picture],
        positions: Sequence[int] | None = None,
    ) -> ExpandedPrompt:
        """Put each picture's tokens into a prompt.

        `positions` are the indices in `tokens` before which the pictures belong, in ascending
        order: one per picture. With None, each `image_token_id` in `tokens` is replaced by a
        picture, in order; for a family without such a token there are no places. Raises
        `ImageCountError` if the numbers disagree, and `PromptError` for a prompt that marks the
        place of a video or a sound.
        """
        marked = 0
        if positions is None:
            for ids, kind in ((self.video_ids, "videos"), (self.audio_ids, "sounds")):
                if any(token in tokens for token in ids):
                    raise PromptError(f"{kind} are not supported; give pictures instead")
            sought = self.image_token_id
            positions = token_places(tokens, sought) if sought is not None else []
            marked = 1
        told = bool(marked and self.image_marks)
        if len(positions) != len(pictures):
            raise ImageCountError(
                f"the prompt has places for {len(positions)} pictures but {len(pictures)} were "
                "given; give one picture for each place"
                + (f" ({self.image_marks[0]} in a text marks one)" if told else "")
            )
        if not pictures:
            return ExpandedPrompt(tokens)
        parts: list[Sequence[int]] = []
        spans = []
        done = length = 0
        for picture, position in zip(pictures, positions, strict=True):
            block = self.picture_tokens(picture)
            length += position - done
            spans.append(ImageSpan(length, len(block), picture))
            length += len(block)
            parts += [tokens[done:position], block]
            done = position + marked
        expanded = TokenIds.joined([*parts, tokens[done:]])
        ranges = self.bidirectional_ranges(expanded, spans)
        return ExpandedPrompt(expanded, tuple(spans), ranges)

    def bidirectional_ranges(
        self, tokens: Sequence[int], spans: Sequence[ImageSpan]
    ) -> tuple[Range, ...]:
        """`ExpandedPrompt.bidirectional` of a prompt with pictures; none for causal decoders."""
        return ()

    def cache_views(
        self,
        caches: Sequence[Any],
        prompt: ExpandedPrompt,
        encode: Callable[[Picture], mx.array] | None = None,
    ) -> list[Any]:
        """The KV caches of a request with pictures, as its decoder is to see them.

        `caches` are mlx-lm's, one per layer, and may already hold a start of the prompt. `encode`
        stands in for `encode_image`, for a family whose decoder needs more of a picture than its
        embeddings; it is for pictures that are not in the caches yet.
        """
        if not prompt.bidirectional:
            return list(caches)
        return [BidirectionalView(cache, prompt.bidirectional) for cache in caches]

    @abstractmethod
    def encode_image(self, picture: Picture) -> mx.array:
        """The rows of one picture, shape [row_count, hidden_size * (1 + features)].

        What stands behind the first `hidden_size` columns is for `cache_views`.
        """

    def encode_images(self, pictures: Sequence[Picture]) -> list[mx.array]:
        """The rows of each of several pictures, as `encode_image` has them.

        For pictures that wait together, at most `images_at_once` of them; a tower whose images are
        all of one size runs them as a batch, which takes a GPU little longer than one.
        """
        return [self.encode_image(picture) for picture in pictures]

    def tower_bytes(self, size: tuple[int, int]) -> int | None:
        """The most bytes that `encode_image` holds at once, beside the weights, its rows included.

        Of a picture of this width and height in pixels, known before anything is decoded or
        computed, on any thread. Never less than MLX then counts (`mx.get_peak_memory`). None where
        nobody knows.
        Raises `ImageError` for a picture that `row_count` would refuse.
        """
        return None

    def embed_tokens(self, text_model: nn.Module, tokens: mx.array) -> mx.array:
        """The decoder's own embeddings of `tokens`, shape [len(tokens), hidden_size]."""
        return text_model.model.embed_tokens(tokens)

    def compute_embeddings(
        self,
        text_model: nn.Module,
        prompt_tokens: mx.array,
        images: Sequence[ImageSpan],
        encode: Callable[[Picture], mx.array] | None = None,
    ) -> PromptEmbeddings:
        """Embed `prompt_tokens` and put each picture's rows in the place of its span.

        `prompt_tokens` has shape [n]; the spans in `images` count from its first element and lie
        wholly within it. `encode` stands in for `encode_image`: whoever keeps rows for later hands
        it over. Raises `ImageCountError` if a span does not fit or does not hold as many
        placeholders as the picture makes rows.
        """
        embeddings = self.embed_tokens(text_model, prompt_tokens)
        tokens: list[int] = prompt_tokens.tolist()  # type: ignore[assignment]
        places: list[int] = []
        rows = []
        done = 0
        for span in images:
            if span.start < done or span.end > len(tokens):
                raise ImageCountError(
                    f"a picture at {span.start}..{span.end} does not fit a prompt of "
                    f"{len(tokens)} tokens"
                )
            done = span.end
            inside = range(span.start, span.end)
            own = [i for i in inside if tokens[i] == self.placeholder_id]
            encoded = (encode or self.encode_image)(span.picture)
            if encoded.shape[0] != len(own):
                raise ImageCountError(
                    f"{encoded.shape[0]} rows do not fit the {len(own)} placeholders at "
                    f"{span.start} of a prompt of {len(tokens)} tokens"
                )
            places += own
            if self.features:
                encoded = encoded[:, : embeddings.shape[-1]]
            rows.append(encoded.astype(embeddings.dtype))
        if rows:
            embeddings[mx.array(places)] = mx.concatenate(rows, axis=0)
        return PromptEmbeddings(embeddings)


def token_places(tokens: Sequence[int], token: int) -> list[int]:
    """Where a token stands; in C, since long prompts have few."""
    places: list[int] = []
    try:
        while True:
            places.append(tokens.index(token, places[-1] + 1 if places else 0))
    except ValueError:
        return places


def with_markers(message: dict[str, Any], markers: Sequence[str]) -> dict[str, Any]:
    """A message for `VisionAddOn.place_images` with each image's marker as a text in its place."""
    rest = iter(markers)
    content = [
        {"type": "text", "text": next(rest)} if part["type"] == "image" else part
        for part in message["content"]
    ]
    return {**message, "content": content}
