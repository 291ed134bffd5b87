"""The engine's thread of each rank: the first has the queue, the others follow it."""

import itertools
import logging
import os
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from engine.generation import Generation
from engine.options import GenerationOptions
from engine.ranks.ranks import Ranks
from engine.ranks.watch import Watch
from engine.worker import Result, Task, Worker
from vision_add_ons.errors import OptionError, RanksLost

if TYPE_CHECKING:
    from engine.decoding.alone import Alone
    from engine.decoding.desk import Desk
    from engine.memory.memory import Memory
    from engine.prompts.builder import Prompt
    from model_kit.kit import ModelKit

log = logging.getLogger("sightline")


class Owner:
    """Stands for a conversation's owner on every rank, as long as rank 0 says that it is there."""


@dataclass(frozen=True)
class Told:
    """A request, as the other ranks have to know it."""

    prompt: "Prompt"
    options: GenerationOptions
    owner: Hashable
    """A text or a number is its own name; another owner's stand-in has this one. None: nobody's."""
    stands_in: bool


class RankedWorker(Worker):
    """A worker whose model is held by several ranks."""

    def __init__(
        self,
        load: Callable[[Callable[[], None]], "ModelKit"],
        remember: Callable[["ModelKit"], "Memory"],
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        self._watch = Watch(self._stuck)
        self._is_stuck = False
        ranks.beat = self._watch.beat
        self._owners: dict[int, Owner] = {}
        self._names: dict[int, tuple[Callable[[], object], int]] = {}
        """By owners' identities, what gives the owner, and its stand-in's name."""
        self._count = itertools.count(1)
        self._gone: list[int] = []
        """Owners that nobody holds any more, which the ranks have not agreed on yet."""
        super().__init__(load, remember)

    def _stuck(self, seconds: float) -> None:
        """On the watch's thread, as the engine's own waits for a rank that does not answer."""
        self._is_stuck = True
        self._death = RanksLost(f"a rank of this model has not answered for {seconds:g} seconds")
        log.critical("%s", self._death)
        self._end_all()
        if not self._ranks.leads:
            os._exit(1)  # nobody else would end it

    def call(
        self,
        work: "Callable[[Memory], Result]",
        *,
        exclusive: bool = True,
        owner: object = None,
    ) -> "Future[Result]":
        """Raises `OptionError`: what is done to the memory of one rank would part it from the
        others."""
        raise OptionError(
            "several ranks hold this model: adapters, and KV caches in files, are not there for it"
        )

    def wait_for_end(self) -> bool:
        """As `Worker` does; not for a thread that will never end."""
        return self._is_stuck or super().wait_for_end()

    def _serve(self) -> None:
        try:
            super()._serve()
        finally:
            self._watch.end()

    def _desk(self, kit: "ModelKit", memory: "Memory") -> "Desk | Alone":
        from engine.ranks.answer import SharedAlone

        return SharedAlone(kit, memory, self._ranks)

    def _wait(self) -> bool:
        self._watch.rest()  # until there is something to do, however long
        going = super()._wait() if self._ranks.leads else True
        gone, self._gone = self._gone, []
        if self._ranks.leads:
            self._watch.beat()
        going, gone = self._ranks.agree((going, gone))
        self._watch.beat()
        for name in gone:
            self._owners.pop(name, None)
        if gone:
            self._names = {at: one for at, one in self._names.items() if one[1] not in gone}
        if not self._ranks.leads:
            self._running = [job for job in self._running if not job.done]
        return going

    def _next(self, desk: "Desk | Alone") -> Generation | Task | None:
        if self._ranks.leads:
            job = super()._next(desk)
            self._ranks.agree(self._told(job) if isinstance(job, Generation) else None)
            return job
        told = self._ranks.agree(None)
        if told is None:
            return None
        owner = self._owner(told.owner) if told.stands_in else told.owner
        generation = Generation(told.prompt, told.options, owner)
        self._running.append(generation)
        return generation

    def _unwanted(self, job: Generation) -> bool:
        return self._ranks.agree(job.cancelled)

    def _told(self, job: Generation) -> Told:
        owner = job.owner
        stands_in = not isinstance(owner, str | int | None)
        if stands_in:
            owner = self._name(owner)
            job.owner = self._owner(owner)
        return Told(job.prompt, job.options, owner, stands_in)

    def _name(self, owner: object) -> int:
        """What an owner's stand-in goes by, as long as anybody holds the owner."""
        reference, name = self._names.get(id(owner), (lambda: None, 0))
        if reference() is owner:
            return name
        name = next(self._count)
        try:
            reference = weakref.ref(owner, lambda _: self._gone.append(name))
        except TypeError:  # of texts and lists, nobody can tell when they are gone
            reference = partial(_itself, owner)
        self._names[id(owner)] = reference, name
        return name

    def _owner(self, name: Any) -> Owner:
        return self._owners.setdefault(name, Owner())


def _itself(owner: object) -> object:
    return owner


def facts_of(kit: "ModelKit", **options: object) -> dict[str, object]:
    """What has to be the same on all ranks, by name."""
    packages = ("sightline", "mlx", "mlx-lm", "transformers")
    versions = {name: version(name) for name in packages}
    return {**versions, "the checkpoint": kit.fingerprint, **options}


def check_same(ranks: Ranks, facts: dict[str, object]) -> None:
    """Raises `OptionError`, on every rank, where one was started with other facts than rank 0."""
    every = ranks.gather(facts)
    for rank, theirs in enumerate(every):
        for name, value in theirs.items():
            if value != every[0][name]:
                raise OptionError(
                    f"rank {rank} has {name} {value!r:.200}, rank 0 has {every[0][name]!r:.200}; "
                    "start all ranks with the same"
                )


def check_ranked(**options: Any) -> None:
    """Raises `OptionError` for what several ranks do not do."""
    for name, value in options.items():
        if value:
            raise OptionError(f"{name} is not there for a model that several ranks hold; leave it")
