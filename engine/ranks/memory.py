"""What ranks keep between requests: the same on all of them, as far as the first has room."""

from typing import TYPE_CHECKING

from engine.memory.memory import Memory
from engine.memory.room import Room
from engine.ranks.ranks import Ranks
from vision_add_ons.errors import NotEnoughMemory

if TYPE_CHECKING:
    from engine.decoding.answer import Answer
    from model_kit.kit import ModelKit


class SharedRoom(Room):
    """Rank 0 says what fits: the others hold as much, and have to let go of the same."""

    def __init__(self, kit: "ModelKit", memory: Memory, ranks: Ranks) -> None:
        super().__init__(kit, memory.budget, memory.features, memory.room.max_bytes)
        self._ranks = ranks

    def admits(self, answer: "Answer") -> bool:
        """As `Room.admits`."""
        told = None
        if self._ranks.leads:
            try:
                fits = super().admits(answer)
                told = fits, answer.limit, answer.step, self._budget.nbytes, ""
            except NotEnoughMemory as error:
                told = False, None, 0, 0, str(error)
        agreed = self._ranks.agree(told)
        assert agreed is not None
        fits, answer.limit, answer.step, kept, refusal = agreed
        if refusal:
            raise NotEnoughMemory(refusal)
        if not self._ranks.leads:
            self._budget.shrink(kept)
        return fits


def share_memory(memory: Memory, kit: "ModelKit", ranks: Ranks) -> None:
    """Keep as much as the rank with the least room for it can."""
    budget, there = memory.budget, memory.room.max_bytes
    budget.max_bytes = min(ranks.gather(budget.max_bytes))
    limits = [limit for limit in ranks.gather(there) if limit is not None]
    memory.room.max_bytes = min(limits, default=None)
    memory.room = SharedRoom(kit, memory, ranks)
