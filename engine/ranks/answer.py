"""An answer that several ranks make: the first decides, the others do the same."""

from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.decoding.alone import Alone, steps
from engine.decoding.answer import Answer, Cancelled
from engine.decoding.sampling import Alternatives, Sampler
from engine.events import FinishReason
from engine.generation import Generation
from engine.memory.memory import Memory
from engine.options import GenerationOptions
from engine.ranks.ranks import Ranks
from vision_add_ons.errors import RanksLost

if TYPE_CHECKING:
    from model_kit.kit import ModelKit


class SharedSampler(Sampler):
    """Draws what rank 0 draws: the others need neither its options nor its random state."""

    def __init__(self, ranks: Ranks, options: GenerationOptions, vocab_size: int) -> None:
        super().__init__(options, vocab_size)
        self._ranks = ranks

    def __call__(self, logprobs: mx.array) -> mx.array:
        """As `Sampler` has it."""
        self.drawn = self._ranks.share(super().__call__(logprobs))
        return self.drawn


class SharedAnswer(Answer):
    """For the engine's thread of each rank."""

    def __init__(
        self, kit: "ModelKit", memory: Memory, generation: Generation, ranks: Ranks
    ) -> None:
        super().__init__(kit, memory, generation)
        self._ranks = ranks
        # Who owns it is told by the worker: an application may hold the generation for long.
        generation.owner = None

    def stop_if_cancelled(self) -> None:
        """As `Answer` has it; asked at the same places on all ranks."""
        if self._ranks.agree(self.generation.cancelled):
            raise Cancelled

    def feed(
        self,
        token: int,
        text: str,
        ended: FinishReason | None,
        logprob: float,
        alternatives: Alternatives,
    ) -> FinishReason | None:
        """As `Answer.feed`; whether the answer ends with it, rank 0 knows."""
        error: BaseException | None = None
        reason: FinishReason | None = None
        try:
            reason = super().feed(token, text, ended, logprob, alternatives)
        except RanksLost:
            raise
        except BaseException as failed:
            error = failed
        reason, failed_there = self._ranks.agree((reason, error is not None))
        if error is not None:
            raise error
        if failed_there:
            raise RuntimeError("the answer failed on rank 0")
        return reason

    def end(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """As `Answer.end`; MLX's errors part the ranks for good."""
        if isinstance(error, RuntimeError):
            lost = RanksLost(f"what the ranks compute together failed: {error}")
            lost.__cause__ = error
            error = self._ranks.lost = lost
        super().end(reason, error)


class SharedAlone(Alone):
    """Answers one request after the other, on all ranks."""

    def __init__(self, kit: "ModelKit", memory: Memory, ranks: Ranks) -> None:
        super().__init__(kit, memory)
        self._ranks = ranks

    def admit(self, generation: Generation) -> None:
        """Begin to answer a request."""
        answer = SharedAnswer(self._kit, self._memory, generation, self._ranks)
        self._steps = steps(answer, make_sampler=partial(SharedSampler, self._ranks))
