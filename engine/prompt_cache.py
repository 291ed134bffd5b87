"""The KV caches of past requests, found again by the longest common prefix of their prompts."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import can_trim_prompt_cache

from engine.budget import Budget
from engine.prefix_tree import PrefixTree, common_prefix
from engine.prompt import Prompt

Snapshot = list[Any]
"""The states of the layers that cannot be trimmed, in order, as they were at some length."""

MAX_SNAPSHOTS = 4
"""The turn borders of one conversation that it can go back to, where its caches rotate: two turns.

Each takes as much memory as the sliding windows of all layers."""


@dataclass(eq=False)
class Entry:
    """One stored conversation: `kv` holds exactly the tokens that `key` stands for."""

    key: list[Hashable]
    kv: list[Any]
    variant: Hashable
    owner: object
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """By the number of tokens from which on the conversation can start again."""
    nbytes: int = 0

    def __post_init__(self) -> None:
        kept = [a for snapshot in self.snapshots.values() for a in _arrays(snapshot)]
        self.nbytes = sum(c.nbytes for c in self.kv) + sum(a.nbytes for a in kept)


@dataclass
class Start:
    """What a request begins with: a KV cache that holds the first `length` tokens of its prompt.

    `kv` is None if nothing was found. `owner` is whose cache it is from now on.
    """

    kv: list[Any] | None
    length: int
    owner: object
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


class PromptCache:
    """Stored KV caches within a budget of bytes; the least recently used make room.

    Used by the engine's thread alone. A cache that is taken leaves the store, so it is extended
    in place: a follow-up copies nothing.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._trees: dict[Hashable, PrefixTree[Entry]] = {}
        self._own: dict[int, Entry] = {}  # by the owner's identity: owners are any objects
        self._count = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return self._count

    def take(self, prompt: Prompt, variant: Hashable, owner: object) -> Start:
        """The KV cache that holds the longest possible start of `prompt`.

        At least the last token is left to run, and no picture is cut in two. The cache of a
        conversation that goes on is taken over; one that another conversation may still need is
        left in the store and its common part copied. A request of nobody's leaves a cache its
        owner's.
        """
        entry, length = self._find(prompt, variant, owner)
        if entry is None:
            return Start(None, 0, owner)
        own = owner is not None and entry.owner is owner
        if not own and length < len(entry.key):
            self._budget.touch(entry)
            return Start(branch(entry, length), length, owner, _upto(entry, length))
        self._remove(entry)
        kv, snapshots = entry.kv, _upto(entry, length)
        if length < len(entry.key):
            kv = shortened(entry, length)
        elif rotates(kv):
            snapshots[length] = snapshot(kv)
        if kv_length(kv) != length:  # some caches trim less than they are asked to
            return Start(None, 0, owner)
        return Start(kv, length, entry.owner if owner is None else owner, snapshots)

    def put(
        self,
        key: Sequence[Hashable],
        kv: list[Any],
        variant: Hashable,
        owner: object,
        snapshots: dict[int, Snapshot] | None = None,
    ) -> None:
        """Store a KV cache that holds exactly `key`; what no longer fits the budget has to go."""
        latest = sorted((snapshots or {}).items())[-MAX_SNAPSHOTS:]
        entry = Entry(list(key), kv, variant, owner, {n: s for n, s in latest if n < len(key)})
        tree = self._trees.setdefault(variant, PrefixTree())
        for end in _starts(entry):
            tree.insert(entry.key[:end], entry)
        self._count += 1
        self.nbytes += entry.nbytes
        if owner is not None:
            self._own[id(owner)] = entry
        self._budget.add(entry, lambda: self._forget(entry))

    def _find(self, prompt: Prompt, variant: Hashable, owner: object) -> tuple[Entry | None, int]:
        """The entry that serves most, and how much; among equals the owner's: it is not copied."""
        best, best_length = None, 0
        own = self._own.get(id(owner)) if owner is not None else None
        if own is not None and own.variant == variant:
            best_length = _usable(own, prompt, common_prefix(own.key, prompt.key))
            best = own if best_length else None
        tree = self._trees.get(variant)
        if tree is None:
            return best, best_length
        for common, entry, _ in tree.longest(prompt.key):
            if common <= best_length:
                break
            length = _usable(entry, prompt, common)
            if length > best_length:
                best, best_length = entry, length
        return best, best_length

    def _remove(self, entry: Entry) -> None:
        self._budget.remove(entry)
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        for end in _starts(entry):
            self._trees[entry.variant].remove(entry.key[:end], entry)
        self._count -= 1
        self.nbytes -= entry.nbytes
        if self._own.get(id(entry.owner)) is entry:
            del self._own[id(entry.owner)]


def _starts(entry: Entry) -> set[int]:
    """The lengths at which a search has to come upon an entry."""
    return {*entry.snapshots, len(entry.key)}


def _usable(entry: Entry, prompt: Prompt, common: int) -> int:
    """How much of an entry can serve a prompt with which it shares `common` tokens; 0 for none."""
    length = prompt.cut(min(common, len(prompt.tokens) - 1))
    if length < len(entry.key) and not can_trim_prompt_cache(entry.kv):
        # No picture is cut at a border, so going back to an earlier one keeps them whole.
        length = max((n for n in entry.snapshots if n <= length), default=0)
    # A cold run would hold a shorter start in full precision.
    return length if length >= _quantized_from(entry) else 0


def _quantized_from(entry: Entry) -> int:
    """The length below which a cold run's cache would not be quantized, if this one is."""
    if isinstance(entry.variant, tuple) and any(hasattr(c, "bits") for c in entry.kv):
        return int(entry.variant[2])
    return 0


def _upto(entry: Entry, length: int) -> dict[int, Snapshot]:
    return {n: snapshot for n, snapshot in entry.snapshots.items() if n <= length}


def rotates(kv: Sequence[Any]) -> bool:
    """Whether some layers drop what is old, so that no trimming brings an earlier state back."""
    return not all(_always_trims(cache) for cache in kv)


def snapshot(kv: Sequence[Any]) -> Snapshot:
    """What is needed to come back to here, of the layers whose caches cannot be trimmed."""
    return [_alias(c.state) for c in kv if not _always_trims(c)]


def shortened(entry: Entry, length: int) -> list[Any]:
    """An entry's caches with their first `length` tokens alone; the entry is used up."""

    def trimmed(cache: Any) -> Any:
        cache.trim(len(entry.key) - length)
        return cache

    return _gone_back(entry, length, trimmed)


def branch(entry: Entry, length: int) -> list[Any]:
    """A copy of the first `length` tokens of an entry's caches; the entry stays as it is."""

    def start(x: Any) -> Any:
        return mx.contiguous(x[..., :length, :]) if isinstance(x, mx.array) else x

    def copied(cache: Any) -> Any:
        copy = type(cache).from_state(tree_map(start, cache.state))
        copy.trim(cache.offset - length)
        return copy

    copies = _gone_back(entry, length, copied)
    mx.eval([c.state for c in copies])
    return copies


def _gone_back(entry: Entry, length: int, trim: Callable[[Any], Any]) -> list[Any]:
    """Each cache by `trim`, or as the snapshot has it where trimming would not bring it back."""
    all_trim = can_trim_prompt_cache(entry.kv)
    states = iter(() if all_trim else entry.snapshots[length])
    return [
        trim(cache)
        if all_trim or _always_trims(cache)
        else type(cache).from_state(_alias(next(states)))
        for cache in entry.kv
    ]


def _always_trims(cache: Any) -> bool:
    """Whether a cache can be trimmed whatever it holds; those that rotate can only before."""
    return cache.is_trimmable() and not hasattr(cache, "max_size")


def _alias(state: Any) -> Any:
    """The same state in arrays of its own, whose contents MLX copies only if one is changed."""
    return tree_map(lambda x: x[...] if isinstance(x, mx.array) else x, state)


def _arrays(tree: Any) -> list[mx.array]:
    return [a for a in dict(tree_flatten(tree)).values() if isinstance(a, mx.array)]


def kv_length(kv: list[Any]) -> int | None:
    """How many tokens a KV cache holds; None if its layers disagree or do not say."""
    lengths = {c.offset for c in kv if hasattr(c, "offset")}
    return lengths.pop() if len(lengths) == 1 else None
