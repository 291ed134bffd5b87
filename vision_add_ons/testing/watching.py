"""An add-on of any class that is watched while an engine uses it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.base import ExpandedPrompt, ImageSpan, Picture, PromptEmbeddings, VisionAddOn
from vision_add_ons.testing.comparison import numbers
from vision_add_ons.testing.state import state_of


class Seen(Exception):
    """Raised where a watched engine stops short of an answer: only the prompt was asked for."""


@dataclass
class Seeing:
    """The rows of one picture, float32 in numpy, as they were handed over and afterwards."""

    picture: Picture
    dtype: mx.Dtype
    before: np.ndarray
    array: mx.array
    after: np.ndarray | None = None


@dataclass
class Merge:
    """One call of `compute_embeddings`, arrays as float32 in numpy."""

    tokens: list[int]
    tokens_after: list[int]
    spans: tuple[ImageSpan, ...]
    looked_up: np.ndarray
    """What `embed_tokens` gives for the tokens, before the call."""
    looked_up_after: np.ndarray
    embeddings: np.ndarray | None
    """None where the decoder looks the tokens up itself, and its views bring the rows."""
    dtypes: tuple[mx.Dtype, mx.Dtype]
    """Of the embeddings, and of the looked up ones."""
    rows: list[Seeing]
    state: dict[str, str]
    """The add-on's state before the call."""


@dataclass
class Watch:
    """What was seen, in order."""

    prompts: list[ExpandedPrompt] = field(default_factory=list)
    eyes: Any = None
    """The add-on that expanded the last of them."""
    merges: list[Merge] = field(default_factory=list)
    only_prompts: bool = False
    """Raise `Seen` instead of letting the engine answer."""
    at_decoder: Callable[[VisionAddOn, nn.Module], None] | None = None
    """Called with the add-on and its decoder, on their thread, before a prompt is embedded."""


def watched(add_on: type[VisionAddOn], watch: Watch) -> type[VisionAddOn]:
    """A subclass that does as `add_on` does, and tells `watch`; on the threads that use it."""

    class Watched(add_on):  # type: ignore[misc, valid-type]
        def expand_prompt(self, *arguments: Any) -> ExpandedPrompt:
            prompt: ExpandedPrompt = super().expand_prompt(*arguments)
            watch.prompts.append(prompt)
            watch.eyes = self
            if watch.only_prompts:
                raise Seen
            return prompt

        def compute_embeddings(
            self,
            text_model: nn.Module,
            prompt_tokens: mx.array,
            images: Sequence[ImageSpan],
            encode: Callable[[Picture], mx.array] | None = None,
        ) -> PromptEmbeddings:
            if watch.at_decoder is not None:
                watch.at_decoder(self, text_model)
            seen: list[Seeing] = []

            def told(picture: Picture) -> mx.array:
                rows = (encode or self.encode_image)(picture)
                seen.append(Seeing(picture, rows.dtype, numbers(rows), rows))
                return rows

            state = state_of(self)
            tokens: Any = prompt_tokens.tolist()
            before = self.embed_tokens(text_model, prompt_tokens)
            looked_up, dtype = numbers(before), before.dtype
            made: PromptEmbeddings = super().compute_embeddings(
                text_model, prompt_tokens, images, told
            )
            embeddings = made.input_embeddings
            for one in seen:
                one.after = numbers(one.array)
            after: Any = prompt_tokens.tolist()
            watch.merges.append(
                Merge(
                    tokens,
                    after,
                    tuple(images),
                    looked_up,
                    numbers(self.embed_tokens(text_model, mx.array(tokens))),
                    None if embeddings is None else numbers(embeddings),
                    (dtype if embeddings is None else embeddings.dtype, dtype),
                    seen,
                    state,
                )
            )
            return made

    Watched.__name__ = Watched.__qualname__ = add_on.__name__
    return Watched
