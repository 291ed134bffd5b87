"""Requests under way: which are read and decoded together, which by themselves, in what turns."""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from mlx_lm.generate import generation_stream, wired_limit

from engine.decoding import alone
from engine.decoding.answer import Answer
from engine.decoding.company import Company
from engine.decoding.lane import decodes_together
from engine.decoding.reading import Reading
from engine.generation import Generation
from engine.memory.memory import Memory

if TYPE_CHECKING:
    from model_kit.kit import ModelKit


class Desk:
    """Answers as many requests at once as it has places. For the engine's thread alone.

    With one place, each is answered by itself, as mlx-lm alone does. With more, prompts are read a
    chunk or a picture at a time, with a step of all answers between two; what cannot be decoded
    together (quantized KV caches) is answered by itself, in turns with the others, one token each.
    """

    def __init__(self, kit: "ModelKit", memory: Memory, places: int) -> None:
        self._kit = kit
        self._memory = memory
        self._places = places
        self._alone: deque[Answer] = deque()
        """Those that wait for their turn of being answered by themselves."""
        self._single: Iterator[None] | None = None
        self._company = Company(kit.text_model)
        self._reading: Reading | None = None
        """None where nothing is decoded together."""
        if places > 1 and decodes_together(kit):
            self._reading = Reading(kit, self._company, sharing=memory.budget.max_bytes > 0)
        self._wired = ExitStack()

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return self._under_way > 0

    @property
    def has_room(self) -> bool:
        """Whether another request can be taken."""
        return self._under_way < (1 if self._reading is None else self._places)

    @property
    def _under_way(self) -> int:
        return self._together + len(self._alone) + (self._single is not None)

    @property
    def _together(self) -> int:
        """How many are read and decoded together."""
        return len(self._company) + len(self._reading or ())

    def admit(self, generation: Generation) -> None:
        """Begin to answer a request."""
        answer = Answer(self._kit, self._memory, generation)
        if self._reading is None or answer.options.kv_bits is not None:
            self._alone.append(answer)
            return
        if not self._together:
            # As mlx-lm's loop does for what it runs itself.
            self._wired.enter_context(wired_limit(self._kit.text_model, [generation_stream]))
        self._reading.add(answer)

    def go_on(self) -> None:
        """A step of everything that is under way."""
        if self._reading is not None:
            self._reading.go_on()
        if len(self._company):
            self._company.step()
        for answer in [one for one in self._alone if one.generation.cancelled]:
            self._alone.remove(answer)
            answer.end("cancelled")
        if self._single is None and self._alone:
            self._single = alone.steps(self._alone.popleft())
        if self._single is not None and next(self._single, self) is self:
            self._single = None
        if not self._together:
            self._wired.close()
