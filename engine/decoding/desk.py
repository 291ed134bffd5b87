"""Requests under way: which are read and decoded together, which by themselves, in what turns."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from mlx_lm.generate import generation_stream, wired_limit

from engine.decoding import alone, reading
from engine.decoding.alone import Alone
from engine.decoding.answer import Answer
from engine.decoding.company import Company
from engine.decoding.reading import Reading
from engine.decoding.trial import decodes_together
from engine.generation import Generation
from engine.memory.memory import Memory

if TYPE_CHECKING:
    from model_kit.kit import ModelKit


class Desk:
    """Answers several requests at once, or one with drafts. For the engine's thread alone.

    Prompts are read a chunk or a picture at a time, with a step of all answers between two; what
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
        self._reading = Reading(kit, self._company, memory)
        self._wired = ExitStack()
        self._due = 0.0
        """When those that are decoded wait no longer for prompts."""

    @property
    def _busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._single is not None or len(self._company) or len(self._reading))

    def takes(self, generation: Generation, under_way: int) -> bool:
        """Whether there is room for another request, this one, beside so many.

        Of those that are answered by themselves there is one at a time.
        """
        free = self._single is None or not self._by_itself(generation)
        return under_way < self._places and free

    def _by_itself(self, generation: Generation) -> bool:
        """Whether mlx-lm's loop answers it: that alone quantizes KV caches, and it is asked for
        where nothing is to be drafted and nobody else is answered."""
        options = generation.options
        return options.kv_bits is not None or (self._places == 1 and options.draft_tokens == 0)

    def admit(self, generation: Generation) -> None:
        """Begin to answer a request."""
        answer = Answer(self._kit, self._memory, generation)
        if not self._busy:
            # As mlx-lm's loop does for what it runs itself; one for all, as the one that is left
            # sets the limit that there was when it was entered.
            self._wired.enter_context(wired_limit(self._kit.text_model, [generation_stream]))
        if self._by_itself(generation):
            in_turns = self._reading.step if self._places > 1 else None
            self._single = alone.steps(answer, in_turns)
        else:
            self._reading.add(answer)

    def step(self, admit: Callable[[], bool]) -> None:
        """A token of every answer that is under way, behind what is read of prompts.

        `admit` lets others in, and says whether there were any: who came meanwhile is read with
        those before the next step.
        """
        while self._read() and admit():
            pass
        if len(self._company):
            self._company.step()
            self._due = time.perf_counter() + reading.GAP
        if self._single is not None and next(self._single, self) is self:
            self._single = None
        if not self._busy:
            self._wired.close()

    def _read(self) -> bool:
        """Read prompts; whether those of others may be read, too, before the next step."""
        if not len(self._company):
            self._due = time.perf_counter() + reading.FIRST
        return self._reading.go_on(self._due)


def desk_for(kit: "ModelKit", memory: Memory, places: int) -> Desk | Alone:
    """What answers so many requests at once, as far as the model can."""
    if places > 1 and not decodes_together(kit):
        places = 1
    return (
        Alone(kit, memory) if places == 1 and memory.drafts is None else Desk(kit, memory, places)
    )
