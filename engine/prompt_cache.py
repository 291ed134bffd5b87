"""The KV caches of past requests, found again by the longest common prefix of their prompts."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from engine.prompt import Prompt


@dataclass(eq=False)
class Entry:
    """One stored conversation: `kv` holds exactly the tokens that `key` stands for."""

    key: list[Hashable]
    kv: list[Any]
    variant: Hashable
    owner: object
    nbytes: int


class PromptCache:
    """Stored KV caches within a budget of bytes; the least recently used make room.

    Used by the engine's thread alone. A cache that is taken leaves the store, so it is extended
    in place: a follow-up copies nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: list[Entry] = []  # least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def take(
        self, prompt: Prompt, variant: Hashable, owner: object
    ) -> tuple[list[Any] | None, int, object]:
        """A KV cache that holds the longest possible start of `prompt`, and that start's length.

        At least the last token is left to run, and no picture is cut in two. (None, 0, owner) if
        nothing fits. The cache of a conversation that goes on is taken over; one that another
        conversation may still need is left in the store and its common part copied. The third
        value is whose cache it is from now on: a request of nobody's leaves it its owner's.
        """
        best: tuple[int, bool, int] | None = None
        for age, entry in enumerate(self._entries):
            if entry.variant != variant:
                continue
            common = common_prefix(entry.key, prompt.key)
            usable = prompt.cut(min(common, len(prompt.tokens) - 1))
            if usable < len(entry.key) and not can_trim_prompt_cache(entry.kv):
                continue
            if usable < _quantized_from(entry):
                continue  # a cold run would hold this start in full precision
            candidate = (usable, entry.owner is owner, age)
            if usable > 0 and (best is None or candidate > best):
                best = candidate
        if best is None:
            return None, 0, owner
        usable, own, age = best
        entry = self._entries[age]
        excess = len(entry.key) - usable
        trimmable = can_trim_prompt_cache(entry.kv)
        if (own and owner is not None) or (excess == 0 and trimmable):
            self._remove(entry)
            if excess:
                trim_prompt_cache(entry.kv, excess)
            if kv_length(entry.kv) != usable:  # some caches trim less than they are asked to
                return None, 0, owner
            return entry.kv, usable, entry.owner if owner is None else owner
        self._entries.append(self._entries.pop(age))
        return branch(entry.kv, usable), usable, owner

    def put(self, key: Sequence[Hashable], kv: list[Any], variant: Hashable, owner: object) -> None:
        """Store a KV cache that holds exactly `key`; evict what no longer fits the budget."""
        entry = Entry(list(key), kv, variant, owner, sum(c.nbytes for c in kv))
        self._entries.append(entry)
        self.nbytes += entry.nbytes
        evicted = False
        while self.nbytes > self.max_bytes:
            self._remove(self._entries[0])
            evicted = True
        if evicted:
            mx.clear_cache()

    def clear(self) -> None:
        self._entries.clear()
        self.nbytes = 0
        mx.clear_cache()

    def _remove(self, entry: Entry) -> None:
        self._entries.remove(entry)
        self.nbytes -= entry.nbytes


def _quantized_from(entry: Entry) -> int:
    """The length below which a cold run's cache would not be quantized, if this one is."""
    if isinstance(entry.variant, tuple) and any(hasattr(c, "bits") for c in entry.kv):
        return int(entry.variant[2])
    return 0


def common_prefix(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """How many leading elements two sequences share."""
    low, high = 0, min(len(a), len(b))
    # Comparing slices runs in C, so halving beats a loop over elements by far.
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def branch(kv: list[Any], length: int) -> list[Any]:
    """A copy of the first `length` tokens of a KV cache; the original stays as it is.

    A cache that cannot be trimmed must be wanted whole.
    """

    def copied(x: Any) -> Any:
        return mx.contiguous(x[..., :length, :]) if isinstance(x, mx.array) else x

    def whole(x: Any) -> Any:
        return mx.array(x) if isinstance(x, mx.array) else x

    copies = []
    for cache in kv:
        trimmable = cache.is_trimmable()
        copy = type(cache).from_state(tree_map(copied if trimmable else whole, cache.state))
        if trimmable:
            copy.trim(cache.offset - length)
        copies.append(copy)
    mx.eval([c.state for c in copies])
    return copies


def kv_length(kv: list[Any]) -> int | None:
    """How many tokens a KV cache holds; None if its layers disagree or do not say."""
    lengths = {c.offset for c in kv if hasattr(c, "offset")}
    return lengths.pop() if len(lengths) == 1 else None
