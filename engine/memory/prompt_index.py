"""Which of the stored KV caches serves most of a prompt."""

from collections.abc import Collection, Hashable, Sequence
from typing import Generic, Protocol, TypeVar

from engine.memory.prefix_tree import PrefixTree
from engine.prompts.prompt import Prompt


class Stored(Protocol):
    """A KV cache in memory or in a file, by what it holds."""

    @property
    def key(self) -> Sequence[Hashable]:
        """What its tokens stand for; see `Prompt.key`."""

    @property
    def variant(self) -> Hashable:
        """`GenerationOptions.kv_variant` of the requests that it serves."""

    @property
    def borders(self) -> Collection[int]:
        """The lengths that it can go back to, where its caches rotate."""

    @property
    def trims(self) -> bool:
        """Whether it can go back to any length."""

    @property
    def least(self) -> int:
        """The length below which it serves nothing: a cold run would not have quantized there."""


E = TypeVar("E", bound=Stored)


class PromptIndex(Generic[E]):
    """Stored KV caches by variant and by their tokens and pictures."""

    def __init__(self) -> None:
        self._trees: dict[Hashable, PrefixTree[E]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: E) -> None:
        tree = self._trees.setdefault(entry.variant, PrefixTree())
        for end in _ends(entry):
            tree.insert(entry.key[:end], entry)
        self._count += 1

    def remove(self, entry: E) -> None:
        """Raises ValueError or KeyError if it is not there."""
        for end in _ends(entry):
            self._trees[entry.variant].remove(entry.key[:end], entry)
        self._count -= 1

    def longest(self, prompt: Prompt, variant: Hashable, beyond: int = 0) -> tuple[E | None, int]:
        """The entry that serves most of a prompt, if that is more than `beyond` tokens."""
        best, best_length = None, beyond
        tree = self._trees.get(variant)
        for common, entry in tree.longest(prompt.key) if tree else ():
            if common <= best_length:
                break
            length = usable(entry, prompt, common)
            if length > best_length:
                best, best_length = entry, length
        return best, best_length

    def starts_of(self, entry: E) -> list[E]:
        """The entries whose tokens begin those of `entry`, or are the same."""
        tree = self._trees.get(entry.variant)
        found = tree.longest(entry.key) if tree else ()
        return [other for common, other in found if common == len(other.key)]

    def beginning_with(self, key: Sequence[Hashable], variant: Hashable) -> set[E]:
        """The entries whose tokens are `key`, or begin with it."""
        tree = self._trees.get(variant)
        return set(tree.beginning_with(key)) if tree else set()


def covers(longer: Stored, shorter: Stored) -> bool:
    """Whether an entry serves whatever another one does that is its start, or the same."""
    if longer.least > shorter.least:
        return False
    return longer.trims or (not shorter.trims and _ends(shorter) <= _ends(longer))


def usable(entry: Stored, prompt: Prompt, common: int) -> int:
    """How much of an entry can serve a prompt with which it shares `common` tokens; 0 for none."""
    length = prompt.cut(min(common, len(prompt.tokens) - 1))
    if length < len(entry.key) and not entry.trims:
        # No picture is cut at a border, so going back to an earlier one keeps them whole.
        length = max((n for n in entry.borders if n <= length), default=0)
    return length if length >= entry.least else 0


def _ends(entry: Stored) -> set[int]:
    """The lengths at which a search has to come upon an entry."""
    return {*entry.borders, len(entry.key)}
