"""Room for requests: what they will take is known before they begin."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx
from PIL import Image

from engine.images import shrunk
from engine.memory.budget import Budget
from engine.memory.features import FeatureCache
from engine.memory.kv_state import nbytes
from engine.memory.needs import Needs, Shape
from vision_add_ons.errors import ImageError, NotEnoughMemory

if TYPE_CHECKING:
    from engine.decoding.answer import Answer
    from model_kit.kit import ModelKit

LEAST_STEP = 64
"""Tokens of the smallest chunks in which a prompt is read where memory is short."""

LEAST_SHARE = 4096
"""Tokens that an answer without a `max_tokens` may have, where fewer would be its share."""

SIDES = (2048, 1536, 1024, 768, 512, 384, 256, 128)
"""Longest sides, in pixels, of which the largest that would fit is recommended."""


class Room:
    """Admits requests while they fit beside the weights. For the engine's thread alone.

    Counted are the weights, the KV caches of all answers under way at their greatest length, and
    what the reading of those prompts takes that are not read yet, as if all were read together; if
    MLX holds more than that, so much. What is kept for later makes room.
    """

    def __init__(
        self,
        kit: "ModelKit",
        budget: Budget,
        features: FeatureCache,
        max_bytes: int | None,
        parallel: int = 1,
    ) -> None:
        """`max_bytes` is the most that MLX may hold in all; None for no bound.

        `parallel` answers may be under way at once.
        """
        self._kit = kit
        self._budget = budget
        self._features = features
        self._parallel = parallel
        self.max_bytes = max_bytes
        self.needs = Needs(kit)
        self.drafts: Needs | None = None
        """Of the model that drafts, which has KV caches of its own."""
        self._weights = kit.report.decoder_bytes + kit.report.vision_bytes
        self._others = max(0, mx.get_active_memory() - self._weights)
        """What the process held beside this model when it was loaded: another's weights."""
        self._held: dict[Answer, tuple[int, int]] = {}
        """Of each answer under way, the bytes of its KV caches, and those that reading it takes."""
        self.padding = 0.0
        """Bytes by which rows that are decoded together are padded."""

    def admits(self, answer: "Answer") -> bool:
        """Whether an answer may begin now; if so, it counts until it has ended.

        False where it has to wait until others have ended. Raises `NotEnoughMemory` where that
        would not help. One for all of whose tokens there would not be room, though for its prompt,
        is made as long as there is.
        """
        if self.max_bytes is None:
            return True
        total, options, needs = len(answer.prompt.tokens), answer.options, self.needs
        shape = Shape.of(answer.prompt, self._features.knows, answer.cached)
        reading = needs.reading(shape, answer.step)
        if options.max_tokens is None:
            answer.limit = None
            answer.limit = self._share(answer, reading)
        kv = needs.kv(total + answer.max_tokens, options)
        if self.drafts is not None and options.draft_tokens != 0:
            kv += self.drafts.kv(total + answer.max_tokens, replace(options, kv_bits=None))
        free = self._beside() - kv
        if free < reading + self._budget.nbytes and answer.kv is not None:
            free = self._beside(nbytes(answer.kv, {})) - kv
        if self._held:
            # What it has of earlier turns is copied when it joins others.
            reading += needs.kv(answer.cached, options) if answer.cached else 0
            if free < reading:
                return False
        while free < reading and answer.step > LEAST_STEP:
            # A prompt can be read in smaller chunks, which takes longer.
            answer.step = max(LEAST_STEP, answer.step // 2)
            reading = needs.reading(shape, answer.step)
        if free < reading:
            fits = needs.tokens(max(0, free + kv - reading), options) - total
            if fits < 1:
                raise self._refusal(answer, reading + needs.kv(total + 1, options))
            answer.limit, kv, free = fits, kv + free - reading, reading
        self._budget.shrink(free - reading)
        self._held[answer] = kv, reading
        return True

    def leave(self, answer: "Answer") -> None:
        """Count an answer no more, which has ended."""
        self._held.pop(answer, None)
        if not self._held:
            self.padding = 0.0

    def has_read(self, answer: "Answer") -> None:
        """Count no more what the reading of a prompt takes."""
        if answer in self._held:
            self._held[answer] = self._held[answer][0], 0

    def _share(self, answer: "Answer", reading: int) -> int:
        """How many tokens an answer gets that is to have as many as there can be.

        All that its context holds would keep others waiting for memory that it may never use.
        """
        places = max(1, self._parallel - len(self._held))
        total = len(answer.prompt.tokens)
        share = max(0, self._beside() - reading) // places
        fits = self.needs.tokens(share, answer.options) - total
        return min(answer.max_tokens, max(LEAST_SHARE, fits))

    @property
    def spare(self) -> float:
        """Bytes that nobody needs, with what is kept for later left alone."""
        return math.inf if self.max_bytes is None else self._beside() - self._budget.nbytes

    def copies(self, answer: "Answer") -> bool:
        """Whether the KV caches of an answer under way may be there twice, for others to go on."""
        return self._held.get(answer, (0, 0))[0] <= self.spare

    def levels(self, answers: Sequence["Answer"]) -> bool:
        """Count each of several whose prompts are read together as the longest, while they are.

        False where there is no room for that.
        """
        held = {answer: self._held[answer] for answer in answers if answer in self._held}
        most = sum(max(kind) for kind in zip(*held.values(), strict=True))
        if sum(most - kv - reading for kv, reading in held.values()) > self.spare:
            return False
        self._held |= {answer: (kv, most - kv) for answer, (kv, _) in held.items()}
        return True

    def _beside(self, own: int = 0) -> int:
        """The bytes that there are beside the weights and what others under way take.

        `own` are those that an answer has taken already of what was kept.
        """
        assert self.max_bytes is not None
        held = mx.get_active_memory() - self._budget.nbytes - own
        reading = sum(reading for _, reading in self._held.values())
        caches = sum(kv for kv, _ in self._held.values())
        others = min(self._others, max(0, held - self._weights))
        taken = max(held, others + self._weights + caches + int(self.padding))
        return self.max_bytes - taken - reading

    def _refusal(self, answer: "Answer", needed: int) -> NotEnoughMemory:
        assert self.max_bytes is not None
        prompt = answer.prompt
        there = max(0, self.max_bytes - self._weights)
        text = (
            f"this prompt would need {_gigabytes(needed)} of memory beside the model's weights, "
            f"and {_gigabytes(there)} are there; "
        )
        longest = max((max(span.picture.size) for span in prompt.spans), default=0)
        for side in (side for side in SIDES if side < longest):
            with suppress(ImageError):  # so small, one side of it would vanish
                smaller = self._smaller(answer, side)
                if smaller <= there:
                    return NotEnoughMemory(
                        f"{text}max_image_size={side} needs {_gigabytes(smaller)}"
                    )
        return NotEnoughMemory(f"{text}shorten it, or start a new conversation")

    def _smaller(self, answer: "Answer", side: int) -> int:
        """What a prompt would need whose pictures are at most so long."""
        add_on, prompt = self._kit.add_on, answer.prompt
        assert add_on is not None
        shape = Shape.of(prompt, lambda _: False)
        sizes = tuple(shrunk(size, side) for size in shape.images)
        rows = sum(len(add_on.picture_tokens(_Sized(size))) for size in sizes)
        total = shape.tokens - sum(span.length for span in prompt.spans) + rows
        shape = replace(shape, tokens=total, whole=min(shape.whole, total), images=sizes)
        return self.needs.reading(shape, answer.step) + self.needs.kv(total + 1, answer.options)


@dataclass(frozen=True)
class _Sized:
    """A picture of which the size alone is known."""

    size: tuple[int, int]
    digest: str = ""

    def pixels(self) -> Image.Image:
        return Image.new("RGB", self.size)

    def release(self) -> None:
        pass


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.0f} MiB"
