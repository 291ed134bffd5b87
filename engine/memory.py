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
        self.features = FeatureCache(kit.add_on, self.budget)


def stats(memory: Memory | None) -> dict[str, int]:
    """What is kept: how many of each kind, and bytes. Nothing, of an engine that is closed."""
    figures = {
        "conversations": lambda kept: len(kept.prompts),
        "conversation_bytes": lambda kept: kept.prompts.nbytes,
        "images": lambda kept: len(kept.features),
        "image_bytes": lambda kept: kept.features.nbytes,
        "bytes": lambda kept: kept.budget.nbytes,
        "max_bytes": lambda kept: kept.budget.max_bytes,
    }
    return {name: figure(memory) if memory else 0 for name, figure in figures.items()}
