"""What an engine keeps between requests, within one budget of bytes."""

from typing import TYPE_CHECKING

from engine.budget import Budget
from engine.features import FeatureCache
from engine.prompt_cache import PromptCache

if TYPE_CHECKING:
    from model_kit.kit import ModelKit


class Memory:
    """The KV caches of past requests, and the rows of pictures. For the engine's thread alone."""

    def __init__(self, kit: "ModelKit", max_bytes: int) -> None:
        self.budget = Budget(max_bytes)
        self.prompts = PromptCache(self.budget)
        self.features = FeatureCache(kit.add_on, self.budget) if kit.add_on else None


def stats(memory: Memory | None) -> dict[str, int]:
    """What is kept: how many of each kind, and bytes. Nothing, of an engine that is closed."""
    prompts = memory.prompts if memory else None
    features = memory.features if memory else None
    return {
        "conversations": len(prompts) if prompts is not None else 0,
        "conversation_bytes": prompts.nbytes if prompts is not None else 0,
        "images": len(features) if features is not None else 0,
        "image_bytes": features.nbytes if features is not None else 0,
        "bytes": memory.budget.nbytes if memory else 0,
        "max_bytes": memory.budget.max_bytes if memory else 0,
    }
