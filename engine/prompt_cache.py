"""The KV caches of past requests, found again by the longest common prefix of their prompts."""

import logging
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.models.cache import can_trim_prompt_cache

from engine import kv_state
from engine.budget import Budget
from engine.disk_cache import DiskCache, StoredFile
from engine.kv_state import Snapshot, kv_length
from engine.prefix_tree import common_prefix
from engine.prompt import Prompt
from engine.prompt_index import PromptIndex, usable

log = logging.getLogger("sightline")

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
    turns: int = 1
    """The requests that made it, one after the other."""
    file: StoredFile | None = None
    """Where an earlier state of it lies."""
    nbytes: int = 0

    def __post_init__(self) -> None:
        self.nbytes = kv_state.nbytes(self.kv, self.snapshots)

    @property
    def borders(self) -> Collection[int]:
        return self.snapshots.keys()

    @property
    def trims(self) -> bool:
        return bool(can_trim_prompt_cache(self.kv))

    @property
    def least(self) -> int:
        """The length below which a cold run's cache would not be quantized, if this one is."""
        if isinstance(self.variant, tuple) and any(hasattr(c, "bits") for c in self.kv):
            return int(self.variant[2])
        return 0


@dataclass
class Start:
    """What a request begins with: a KV cache that holds the first `length` tokens of its prompt.

    `kv` is None if nothing was found. `owner` is whose cache it is from now on.
    """

    kv: list[Any] | None
    length: int
    owner: object
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    from_disk: bool = False
    turns: int = 0
    file: StoredFile | None = None


class PromptCache:
    """Stored KV caches within a budget of bytes; the least recently used make room.

    Used by the engine's thread alone. A cache that is taken leaves the store, so it is extended
    in place: a follow-up copies nothing.
    """

    def __init__(self, budget: Budget, disk: DiskCache) -> None:
        self._budget = budget
        self._disk = disk
        self._index: PromptIndex[Entry] = PromptIndex()
        self._entries: dict[int, Entry] = {}
        self._own: dict[int, Entry] = {}  # by the owner's identity: owners are any objects
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, prompt: Prompt, variant: Hashable, owner: object) -> Start:
        """The KV cache that holds the longest possible start of `prompt`.

        At least the last token is left to run, and no picture is cut in two. The cache of a
        conversation that goes on is taken over; one that another conversation may still need is
        left in the store and its common part copied. A request of nobody's leaves a cache its
        owner's. A file is read only if it serves more than anything in memory.
        """
        entry, length = self._find(prompt, variant, owner)
        while True:
            stored, on_disk = self._disk.longest(prompt, variant, length)
            if stored is None:
                break
            loaded = self._disk.load(stored)
            if loaded is not None:
                start = _from_file(stored, *loaded, on_disk, owner)
                if start is not None:
                    return start
                self._disk.forget(stored)
        if entry is None:
            return Start(None, 0, owner)
        own = owner is not None and entry.owner is owner
        snapshots = _upto(entry.snapshots, length)
        if not own and length < len(entry.key):
            self._budget.touch(entry)
            kv = kv_state.branch(entry.kv, entry.snapshots, length)
            return Start(kv, length, owner, snapshots)
        self._remove(entry)
        kv = _ready(entry.kv, entry.snapshots, length, len(entry.key), snapshots)
        if kv_length(kv) != length:  # some caches trim less than they are asked to
            return Start(None, 0, owner)
        owner = entry.owner if owner is None else owner
        return Start(kv, length, owner, snapshots, turns=entry.turns, file=entry.file)

    def put(self, key: Sequence[Hashable], kv: list[Any], variant: Hashable, start: Start) -> None:
        """Store a KV cache that holds exactly `key`, and began as `start`.

        What no longer fits the budget has to go: to the disk, if there is a folder for it.
        """
        latest = sorted(start.snapshots.items())[-MAX_SNAPSHOTS:]
        snapshots = {n: s for n, s in latest if n < len(key)}
        turns = start.turns + 1
        entry = Entry(list(key), kv, variant, start.owner, snapshots, turns, start.file)
        self._index.add(entry)
        self._entries[id(entry)] = entry
        self.nbytes += entry.nbytes
        if entry.owner is not None:
            self._own[id(entry.owner)] = entry
        self._budget.add(entry, lambda: self._evict(entry))

    def of(self, owner: object) -> Entry | None:
        """The latest conversation of an owner."""
        return self._own.get(id(owner))

    def keep_grown(self) -> None:
        """Write what is twice as long as in its file, or in none: when there is nothing to do.

        So all the writes of a conversation take about twice its bytes, however many its turns.
        """
        for entry in self._entries.values():
            if entry.file is None or len(entry.key) >= 2 * len(entry.file.key):
                self._keep(entry)

    def keep_all(self) -> None:
        """Write what the disk does not have yet: nothing else will be done."""
        for entry in self._entries.values():
            self._keep(entry, at_leisure=False)

    def _keep(self, entry: Entry, at_leisure: bool = True) -> None:
        # A request that nobody goes on with is not worth the wear.
        if entry.owner is None and entry.turns < 2:
            return
        try:
            self._disk.keep(entry, at_leisure)
        except Exception:
            # Answers do not depend on it, and the engine's thread must outlive it.
            log.exception("a conversation could not be written to the disk")

    def _find(self, prompt: Prompt, variant: Hashable, owner: object) -> tuple[Entry | None, int]:
        """The entry that serves most, and how much; among equals the owner's: it is not copied."""
        best, best_length = None, 0
        own = self._own.get(id(owner)) if owner is not None else None
        if own is not None and own.variant == variant:
            best_length = usable(own, prompt, common_prefix(own.key, prompt.key))
            best = own if best_length else None
        other, length = self._index.longest(prompt, variant, best_length)
        return (other, length) if other is not None else (best, best_length)

    def _evict(self, entry: Entry) -> None:
        self._forget(entry)
        self._keep(entry)
        if entry.file is not None:
            entry.file.replaceable = True  # whoever goes on with the conversation takes it over

    def _remove(self, entry: Entry) -> None:
        self._budget.remove(entry)
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self._index.remove(entry)
        del self._entries[id(entry)]
        self.nbytes -= entry.nbytes
        if self._own.get(id(entry.owner)) is entry:
            del self._own[id(entry.owner)]


def _from_file(
    stored: StoredFile,
    kv: list[Any],
    snapshots: dict[int, Snapshot],
    length: int,
    owner: object,
) -> Start | None:
    """A start from what was read; None if the caches do not trim as they should."""
    kept = _upto(snapshots, length)
    kv = _ready(kv, snapshots, length, len(stored.key), kept)
    if kv_length(kv) != length:
        return None
    file = None
    if length == len(stored.key) and stored.replaceable:
        # The conversation goes on, not a branch of it, and takes its file over.
        file, stored.replaceable = stored, False
    return Start(kv, length, owner, kept, from_disk=True, turns=1, file=file)


def _ready(
    kv: list[Any],
    snapshots: dict[int, Snapshot],
    length: int,
    holds: int,
    kept: dict[int, Snapshot],
) -> list[Any]:
    """The caches at `length`; a snapshot of it in `kept`, if they could not come back to it."""
    if length < holds:
        return kv_state.shortened(kv, snapshots, length)
    if kv_state.rotates(kv):
        kept[length] = kv_state.snapshot(kv)
    return kv


def _upto(snapshots: dict[int, Snapshot], length: int) -> dict[int, Snapshot]:
    return {n: snapshot for n, snapshot in snapshots.items() if n <= length}
