"""The KV caches of past requests, found again by the longest common prefix of their prompts."""

import logging
import weakref
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_lm.models.cache import can_trim_prompt_cache

from engine.memory import kv_state
from engine.memory.budget import Budget
from engine.memory.disk_cache import DiskCache, StoredFile
from engine.memory.kv_state import Snapshot, kv_length
from engine.memory.prompt_index import PromptIndex, common_prefix, covers, usable
from vision_add_ons.token_ids import TokenIds

if TYPE_CHECKING:
    from engine.prompts.builder import Prompt

log = logging.getLogger("sightline")

MAX_SNAPSHOTS = 4
"""The turn borders of one conversation that it can go back to, where its caches rotate: two turns.

Each takes as much memory as the sliding windows of all layers."""

MAX_ANSWERS = 2
"""The answers to one and the same prompt that are kept though nobody owns them.

Who drew another answer goes on with the latest; a second is for a client that asks the same at the
same time. All that a third would save is reading its own answer again: the prompt is in each.
"""


WORTH_A_COPY = 64
"""Tokens more that another's cache has to serve than the owner's own, which goes on in place.

Two conversations that begin alike share the first words of their latest questions too, and what
comes before is not copied for those.
"""


@dataclass(eq=False)
class Entry:
    """One stored conversation: `kv` holds exactly the tokens that `key` stands for."""

    key: Sequence[Hashable]
    kv: list[Any]
    variant: Hashable
    asked: int
    """How many of its tokens are the latest prompt's; the rest is the answer."""
    owner: Callable[[], object]
    """Gives whose conversation it is; None once nobody holds the owner any more."""
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """By the number of tokens from which on the conversation can start again."""
    turns: int = 1
    """The requests that made it, one after the other."""
    file: StoredFile | None = None
    """Where an earlier state of it lies."""
    lasting: bool = False
    """Whether it is worth writing after one turn: the latest of what was somebody's."""
    nbytes: int = 0
    borders: Collection[int] = ()
    least: int = 0
    """The length below which a cold run's cache would not be quantized, if this one is."""

    def __post_init__(self) -> None:
        kv_state.fit(self.kv)
        self.snapshots = {n: kv_state.fitted(self.kv, s) for n, s in self.snapshots.items()}
        self.nbytes = kv_state.nbytes(self.kv, self.snapshots)
        self.borders = self.snapshots.keys()
        if isinstance(self.variant, tuple) and any(hasattr(c, "bits") for c in self.kv):
            self.least = int(self.variant[2])

    @property
    def owned(self) -> bool:
        """Whether a conversation that somebody holds will go on with it."""
        return self.owner() is not None

    @property
    def trims(self) -> bool:
        return bool(can_trim_prompt_cache(self.kv))


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
    asked: int = 0
    """How many tokens the prompt has."""


class PromptCache:
    """Stored KV caches within a budget of bytes, none of them kept twice.

    What nobody owns makes room first, then the least recently used; an owner that nobody holds
    any more owns nothing. Used by the engine's thread alone. A cache that is taken leaves the
    store, so it is extended in place: a follow-up copies nothing.
    """

    def __init__(self, budget: Budget, disk: DiskCache, rotates: bool = False) -> None:
        """`rotates` says that of the model's caches; see `kv_state.rotates`."""
        self._budget = budget
        self._disk = disk
        self._rotates = rotates
        self._index: PromptIndex[Entry] = PromptIndex()
        self._entries: dict[int, Entry] = {}
        self._own: dict[Hashable, Entry] = {}
        """The latest of each owner, by `_name`."""
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def serves(self, prompt: "Prompt", variant: Hashable, owner: object) -> int:
        """How many tokens of a prompt `take` would find in memory."""
        return self._find(prompt, variant, owner)[1]

    def take(self, prompt: "Prompt", variant: Hashable, owner: object) -> Start:
        """The KV cache that holds the longest possible start of `prompt`.

        At least the last token is left to run, and no picture is cut in two. The cache of a
        conversation that goes on is taken over; one that another conversation may still need is
        left in the store and its common part copied. A request of nobody's leaves a cache its
        owner's. A file is read only if it serves more than anything in memory.
        """
        entry, length = self._find(prompt, variant, owner)
        asked = len(prompt.tokens)
        if self._disk.index.count:
            start = self._from_disk(prompt, variant, length, owner)
            if start is not None:
                return start
        if entry is None:
            return Start(None, 0, owner, asked=asked)
        kv, snapshots = entry.kv, _upto(entry.snapshots, length)
        if length < len(entry.key) and entry is not self.of(owner):
            self._budget.touch(entry)
            kv = kv_state.branch(kv, entry.snapshots, length)
            return Start(kv, length, owner, snapshots, asked=asked)
        self._remove(entry)
        if length < len(entry.key):
            kv = kv_state.shortened(kv, entry.snapshots, length)
            if kv_length(kv) != length:  # some caches trim less than they are asked to
                return Start(None, 0, owner, asked=asked)
        elif self._rotates:  # they could not come back to here
            snapshots[length] = kv_state.snapshot(kv)
        if owner is None:
            owner = entry.owner()
        return Start(kv, length, owner, snapshots, False, entry.turns, entry.file, asked)

    def _from_disk(
        self, prompt: "Prompt", variant: Hashable, beyond: int, owner: object
    ) -> Start | None:
        """What a file has that serves more than `beyond` tokens."""
        while True:
            stored, length = self._disk.index.longest(prompt, variant, beyond)
            if stored is None:
                return None
            loaded = self._disk.load(stored)
            if loaded is None:
                continue
            kv, snapshots = loaded
            kept = _upto(snapshots, length)
            if length < len(stored.key):
                kv = kv_state.shortened(kv, snapshots, length)
            elif self._rotates:
                kept[length] = kv_state.snapshot(kv)
            if kv_length(kv) != length:
                self._disk.forget(stored)
                continue
            file = None
            if length == len(stored.key) and stored.replaceable:
                # The conversation goes on, not a branch of it, and takes its file over.
                file, stored.replaceable = stored, False
            return Start(kv, length, owner, kept, True, 1, file, len(prompt.tokens))

    def put(self, key: Sequence[Hashable], kv: list[Any], variant: Hashable, start: Start) -> None:
        """Store a KV cache that holds exactly `key`, and began as `start`.

        What is nobody's, or of the same owner, and no more than its start goes; what is nobody's
        itself and no more than the start of another is not added. What no longer fits the budget
        has to go: to the disk, if there is a folder for it.
        """
        latest = sorted(start.snapshots.items())[-MAX_SNAPSHOTS:]
        snapshots = {n: s for n, s in latest if n < len(key)}
        entry = Entry(
            key if isinstance(key, TokenIds) else tuple(key),
            kv,
            variant,
            start.asked,
            _reference(start.owner),
            snapshots,
            start.turns + 1,
            start.file,
            lasting=start.owner is not None,
        )
        before = self.of(start.owner)
        if before is not None:  # left behind: an answer that another one took the place of
            before.owner, before.lasting = _reference(None), False
        for other in self._index.starts_of(entry):
            if not other.owned and covers(entry, other):
                self._remove(other)
                _inherit(entry, other)
        if start.owner is None and self._covered(entry):
            return
        self._index.add(entry)
        self._entries[id(entry)] = entry
        self.nbytes += entry.nbytes
        if start.owner is not None:
            self._own[_name(start.owner)] = entry
        self._budget.add(entry, lambda: self._evict(entry))
        self._drop_older_answers(entry)

    def _covered(self, entry: Entry) -> bool:
        """Whether another serves all that it would: that one counts as used."""
        for other in self._index.beginning_with(entry.key, entry.variant):
            if covers(other, entry):
                _inherit(other, entry)
                self._budget.touch(other)
                return True
        return False

    def _drop_older_answers(self, entry: Entry) -> None:
        """Of all that is nobody's and answers the same prompt, keep the latest alone."""
        answers = [
            e
            for e in self._entries.values()
            if (e.asked, e.variant) == (entry.asked, entry.variant)
            and not e.owned
            and common_prefix(e.key, entry.key) >= entry.asked
        ]
        for old in answers[:-MAX_ANSWERS]:
            self._remove(old)
            _let_go(old.file)

    def of(self, owner: object) -> Entry | None:
        """The latest conversation of an owner."""
        entry = self._own.get(_name(owner))
        # Of one that is gone, another object may have the name.
        return entry if entry is not None and entry.owned else None

    def recount(self, entry: Entry) -> None:
        """Count what an entry takes now: whoever writes it cuts it to its tokens."""
        nbytes = kv_state.nbytes(entry.kv, entry.snapshots)
        if id(entry) in self._entries:
            self.nbytes += nbytes - entry.nbytes
        self._budget.recount(entry, nbytes)

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
        if not entry.lasting and entry.turns < 2:
            return
        try:
            self._disk.keep(entry, at_leisure)
            self.recount(entry)
        except Exception:
            # Answers do not depend on it, and the engine's thread must outlive it.
            log.exception("a conversation could not be written to the disk")

    def _find(self, prompt: "Prompt", variant: Hashable, owner: object) -> tuple[Entry | None, int]:
        """The entry that serves most, and how much; the owner's if others serve little more."""
        best, best_length = None, 0
        own = self.of(owner)
        if own is not None and own.variant == variant:
            best_length = usable(own, prompt, common_prefix(own.key, prompt.key))
            best = own if best_length else None
        enough = best_length + WORTH_A_COPY if best_length else 0
        if enough < len(prompt.tokens) - 1:  # else no other can serve more
            other, length = self._index.longest(prompt, variant, enough)
            if other is not None:
                return other, length
        return best, best_length

    def _evict(self, entry: Entry) -> None:
        self._remove(entry)
        self._keep(entry)
        _let_go(entry.file)

    def _remove(self, entry: Entry) -> None:
        self._budget.remove(entry)
        self._index.remove(entry)
        del self._entries[id(entry)]
        self.nbytes -= entry.nbytes
        self._own = {owner: own for owner, own in self._own.items() if own is not entry}


def _reference(owner: object) -> Callable[[], object]:
    """What gives an owner as long as anybody holds it; texts, numbers and lists, for good."""
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


def _name(owner: object) -> Hashable:
    """What tells owners apart: texts and numbers by what they say, others by which they are."""
    return ("", owner) if isinstance(owner, str | int) else id(owner)


def _inherit(entry: Entry, gone: Entry) -> None:
    """Let an entry stand for another, which was its start."""
    entry.turns = max(entry.turns, gone.turns)
    entry.lasting = entry.lasting or gone.lasting
    if entry.file is None:
        entry.file = gone.file
    elif gone.file is not entry.file:
        _let_go(gone.file)


def _let_go(file: StoredFile | None) -> None:
    if file is not None:
        file.replaceable = True  # whoever goes on with the conversation takes it over


def _upto(snapshots: dict[int, Snapshot], length: int) -> dict[int, Snapshot]:
    return {n: snapshot for n, snapshot in snapshots.items() if n <= length}
