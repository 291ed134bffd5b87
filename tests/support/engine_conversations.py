"""Random conversations on tiny checkpoints, each answer held against one that was made cold.

Some have pictures out of a pool of look-alikes; they go on, go back to an earlier turn, try an
answer again, branch, alternate, lose what was kept of them, and outlive their engine in files, of
which some are damaged.
"""

import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from engine import Engine, Generation, GenerationOptions, Request, TextDelta, load
from engine.memory.memory import Memory
from vision_add_ons.testing import (
    BOS,
    TOLERANCE,
    VOCAB,
    WORDS,
    Part,
    Reference,
    relative_error,
    written,
)

MOVES = {
    "go on": 33,
    "go back": 15,
    "new": 10,
    "branch": 10,
    "again": 10,
    "forget": 5,
    "shorten": 5,
    "look alike": 10,
    "restart": 2,
}
"""What a step may do, and how often one in a hundred does."""

BUDGET = 3 * 2**20
"""Bytes: some conversations have to go."""

Turns = list[list[Part]]
"""A conversation's questions and answers in turns, each a list of tokens and pictures."""


def look_alikes(chance: random.Random) -> list[Image.Image]:
    """Pictures of two sizes, those of one size alike but for a square of pixels."""
    pool = []
    for size in ((40, 30), (28, 52)):
        first = Image.frombytes("RGB", size, chance.randbytes(size[0] * size[1] * 3))
        for _ in range(3):
            picture = first.copy()
            colour = tuple(chance.randrange(256) for _ in range(3))
            picture.paste(colour, (4, 4, 20, 20))
            pool.append(picture)
    return pool


@contextmanager
def all_kept() -> Iterator[None]:
    """Meanwhile, no conversation may be lost on the way to its file, which is a warning alone."""
    lost: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lost.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("sightline")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
    assert not [message for message in lost if "is not kept" in message], lost


class Simulation:
    """Two engines with one checkpoint: one that keeps what it can, one that keeps nothing."""

    def __init__(
        self,
        folder: Path,
        image_token: int,
        seed: int,
        cache_bytes: int,
        together: int = 1,
        draft: str | None = None,
        **options: Any,
    ) -> None:
        """`together` conversations, at most, ask at once; `draft` guesses the answers of the one
        that keeps what it can: "lookup", or "itself", the model without its eyes."""
        self.draft = str(folder) if draft == "itself" else draft
        self.folder, self.image_token, self.options = folder, image_token, options
        self.together = together
        self.chance = random.Random(seed)
        self.pool = look_alikes(self.chance)
        self.talks: list[Turns] = []
        self.stack = ExitStack()
        self.stack.enter_context(all_kept())
        self.cache_bytes = cache_bytes
        self.cache_dir = Path(self.stack.enter_context(TemporaryDirectory()))
        self.cold: Engine = self.stack.enter_context(load(folder, cache_bytes=0))
        self.warm = self._load()
        self.stack.callback(lambda: self.warm.close())
        self.steps = self.cached = self.reused = self.from_disk = self.restarts = 0
        self.drafted = 0
        self.worst = 0.0

    @classmethod
    def of(
        cls,
        family: type[Reference],
        folder: Path,
        seed: int,
        together: int = 1,
        draft: str | None = None,
    ) -> "Simulation":
        """With a checkpoint of a family's, which is written to `folder`."""
        reference = family(seed)
        written(reference, folder)
        return cls(folder, reference.image_token, seed, BUDGET, together, draft)

    def _load(self) -> Engine:
        sizes = {"cache_bytes": self.cache_bytes, "cache_dir_bytes": 4 * self.cache_bytes}
        return load(
            self.folder,
            cache_dir=self.cache_dir,
            parallel=self.together,
            draft=self.draft,
            **sizes,  # type: ignore[arg-type]
        )

    def restart(self) -> None:
        """The end of the engine that keeps what it can, and a new one; sometimes with damage."""
        self.warm.close()
        files = sorted(self.cache_dir.rglob("*.safetensors"))
        assert sum(f.stat().st_size for f in files) <= 4 * self.cache_bytes
        if files and self.chance.random() < 0.3:
            file = self.chance.choice(files)
            damaged = bytearray(file.read_bytes())
            damaged[self.chance.randrange(len(damaged))] ^= 1 << self.chance.randrange(8)
            file.write_bytes(damaged[: self.chance.choice((None, len(damaged) // 2))])
        self.warm = self._load()
        self.restarts += 1

    def __enter__(self) -> "Simulation":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def step(self, move: str | None = None, seed: int | None = None) -> None:
        """A question in one of the conversations, and its two answers; random if not given.

        Others may go on at the same time.
        """
        if seed is not None:
            self.chance = random.Random(seed)
        move = move or self.chance.choices(list(MOVES), list(MOVES.values()))[0]
        if move == "restart":
            self.restart()
        elif move == "forget":
            self._forget()
        asking = [self._choose_talk(move)]
        for _ in range(self.chance.randrange(self.together) if self.together > 1 else 0):
            others = [t for t in self.talks if not any(t is talk for talk in asking)]
            if not others and len(self.talks) < 6:
                self.talks.append([])
                others = self.talks[-1:]
            asking += [self.chance.choice(others)] if others else []
        for talk in asking:
            talk.append(self._question())
            if sum(1 if isinstance(part, int) else 40 for turn in talk for part in turn) > 400:
                del talk[:]
                talk.append(self._question())
        for talk, answer in zip(asking, self._ask(asking), strict=True):
            talk.append(answer)
        self.steps += 1

    def _choose_talk(self, move: str) -> Turns:
        """A conversation where it stands, or as it stood; or a branch of one, or a new one."""
        if not self.talks or (move == "new" and len(self.talks) < 5):
            self.talks.append([])
            return self.talks[-1]
        talk = self.chance.choice(self.talks)
        if move == "go back" and talk:  # to before some question, which is asked in another way
            del talk[2 * self.chance.randrange(len(talk) // 2) :]
        elif move == "branch":
            copy = [list(turn) for turn in talk]
            self.talks[self.chance.randrange(len(self.talks))] = copy
            return copy
        elif move == "again" and talk:  # the same question
            question = talk[-2]
            del talk[-2:]
            talk.append(question)
            talk += self._ask([talk])
        elif move == "look alike":  # another picture of the same size in place of one
            self._exchange_picture(talk)
        elif move == "shorten" and len(talk) > 1:  # an answer, by whoever keeps it
            talk[-1] = talk[-1][: self.chance.randrange(len(talk[-1]) + 1)]
        return talk

    def _exchange_picture(self, talk: Turns) -> None:
        places = [(turn, i) for turn in talk for i, p in enumerate(turn) if not isinstance(p, int)]
        if places:
            turn, i = self.chance.choice(places)
            old = turn[i]
            others = [p for p in self.pool if p is not old and p.size == old.size]  # type: ignore
            turn[i] = self.chance.choice(others)

    def forget_all(self) -> None:
        """As if nothing had been asked: no conversations, nothing kept in memory or in files."""
        self.talks = []
        self.warm.close()
        shutil.rmtree(self.cache_dir)
        self.warm = self._load()

    def _forget(self) -> None:
        def shrink(memory: Memory) -> None:
            memory.budget.shrink(memory.budget.nbytes // 2)

        self.warm._worker.call(shrink).result()

    def _question(self) -> list[Part]:
        words = [self.chance.choice(WORDS) for _ in range(self.chance.randrange(1, 12))]
        question: list[Part] = list(words)
        for _ in range(self.chance.choice((0, 0, 1, 1, 2, 3))):
            # Never last: a prompt's last token is text, as every chat template has it.
            question.insert(self.chance.randrange(len(question)), self.chance.choice(self.pool))
            question.insert(self.chance.randrange(len(question)), self.chance.choice(WORDS))
        return question

    def _ask(self, talks: list[Turns]) -> list[list[Part]]:
        """The answers to conversations that ask at once, having held each against a cold one."""
        requests = [self._request(talk) for talk in talks]
        begun = [self.warm.submit(request) for request in requests]
        if len(begun) > 1 and self.chance.random() < 0.1:
            leaving = self.chance.choice(begun)
            next(leaving)
            leaving.cancel()
        return [self._held(*one) for one in zip(requests, begun, strict=True)]

    def _request(self, talk: Turns) -> Request:
        parts: list[Part] = [BOS]
        for turn in talk:
            for part in turn:
                if not isinstance(part, int) and not isinstance(parts[-1], int):
                    parts.append(WORDS[0])  # families put something between two pictures
                parts.append(part)
        tokens = [p if isinstance(p, int) else self.image_token for p in parts]
        images = [p for p in parts if not isinstance(p, int)]
        step = self.chance.choice((7, 32, 2048))
        wanted = GenerationOptions(
            max_tokens=3, top_logprobs=VOCAB, prefill_step_size=step, **self.options
        )
        if self.draft is not None:
            wanted = replace(
                wanted,
                max_tokens=self.chance.choice((3, 12)),
                draft_tokens=self.chance.choice((1, 4, 16)),
                stop=[f" {self.chance.choice('abcdefgh')}"] if self.chance.random() < 0.3 else [],
            )
        owner = talk if self.chance.random() < 0.8 else None
        return Request(tokens, images, wanted, owner=owner)

    def _held(self, request: Request, warm_answer: Generation) -> list[Part]:
        answers = []
        leave_at = 0
        if self.draft is not None and self.chance.random() < 0.1:
            leave_at = self.chance.randrange(1, 12)
        for generation in (warm_answer, self.cold.submit(request)):
            deltas = []
            for event in generation:
                if isinstance(event, TextDelta) and event.token is not None:
                    deltas.append(event)
                if len(deltas) == leave_at > 0 and generation is warm_answer:
                    generation.cancel()
            rows = np.zeros((len(deltas), VOCAB))
            for row, delta in zip(rows, deltas, strict=True):
                for token, logprob in delta.top_logprobs:
                    row[token] = logprob
            answers.append(([d.token for d in deltas], rows, generation.result()))
        (ours, warm, end), (theirs, cold, nothing) = answers
        if end.finish_reason == "cancelled":
            theirs, cold = theirs[: len(ours)], cold[: len(ours)]
        # Nothing was kept, and what stands in a prompt twice is encoded once.
        twice = len(request.images) - len({(i.size, i.tobytes()) for i in request.images})
        assert (nothing.cached_tokens, nothing.images_reused) == (0, twice)
        self.cached += end.cached_tokens
        self.from_disk += end.disk_tokens
        self.reused += end.images_reused
        self.drafted += end.drafted_tokens
        error = relative_error(warm, cold) if ours else 0.0
        self.worst = max(self.worst, error)
        assert ours == theirs, (self.steps, error)
        assert error <= TOLERANCE, (self.steps, error)
        return list(ours)  # type: ignore[arg-type]
