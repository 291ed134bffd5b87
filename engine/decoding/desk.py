"""Requests under way: which are read and decoded together, which by themselves, in what turns."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from mlx_lm.generate import generation_stream, wired_limit

from engine.decoding import alone, reading
from engine.decoding.answer import Answer
from engine.decoding.company import Company
from engine.decoding.reading import Reading
from engine.decoding.trial import decodes_together
from engine.generation import Generation
from engine.memory.memory import Memory

if TYPE_CHECKING:
    from model_kit.kit import ModelKit


class Desk:
    """Answers as many requests at once as it has places. For the engine's thread alone.

    With one place, each is answered by itself, as mlx-lm alone does. With more, or with drafts,
    prompts are read a chunk or a picture at a time, with a step of all answers between two; what
    cannot be decoded together (quantized KV caches) is answered by itself, in turns with the
    others, one token each.
    """

    def __init__(self, kit: "ModelKit", memory: Memory, places: int) -> None:
        self._kit = kit
        self._memory = memory
        self._places = places
        self._single: Iterator[None] | None = None
        """The one that is answered by itself."""
        self._company = Company(kit.text_model, memory.room, memory.drafts)
        self._reading: Reading | None = None
        """None where nothing is decoded together, or with drafts."""
        if places > 1 and not decodes_together(kit):
            self._places = 1
        if self._places > 1 or memory.drafts is not None:
            self._reading = Reading(kit, self._company, memory)
        self._wired = ExitStack()
        self._due = 0.0
        """When those that are decoded wait no longer for prompts."""

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return self._under_way > 0

    def takes(self, generation: Generation) -> bool:
        """Whether there is room for another request, this one.

        Of those that are answered by themselves there is one at a time.
        """
        alone = self._by_itself(generation)
        return self._under_way < self._places and not (alone and self._single is not None)

    def _by_itself(self, generation: Generation) -> bool:
        options = generation.options
        undrafted = self._places == 1 and options.draft_tokens == 0
        return self._reading is None or options.kv_bits is not None or undrafted

    @property
    def _under_way(self) -> int:
        return self._together + (self._single is not None)

    @property
    def _together(self) -> int:
        """How many are read and decoded together."""
        return len(self._company) + len(self._reading or ())

    def admit(self, generation: Generation) -> None:
        """Begin to answer a request."""
        answer = Answer(self._kit, self._memory, generation)
        if self._reading is not None and not self.busy:
            # As mlx-lm's loop does for what it runs itself; one for all, as the one that is left
            # sets the limit that there was when it was entered.
            self._wired.enter_context(wired_limit(self._kit.text_model, [generation_stream]))
        if self._reading is None or self._by_itself(generation):
            step = None if self._reading is None else self._reading.step
            self._single = alone.steps(answer, step)
            return
        self._reading.add(answer)

    def read(self) -> bool:
        """Read prompts; whether those of others may be read, too, before the next step."""
        if self._reading is None:
            return False
        if not len(self._company):
            self._due = time.perf_counter() + reading.FIRST
        return self._reading.go_on(self._due)

    def step(self) -> None:
        """A token of every answer that is under way."""
        if len(self._company):
            self._company.step()
            self._due = time.perf_counter() + reading.GAP
        if self._single is not None and next(self._single, self) is self:
            self._single = None
        if not self.busy:
            self._wired.close()
