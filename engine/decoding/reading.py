"""Prompts that are being read, in turns and several at once, until their answers are decoded."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.decoding.answer import Answer, Cancelled, ending
from engine.decoding.company import Company
from engine.decoding.groups import Unread, alike
from engine.decoding.lane import LaneCache
from engine.decoding.looking import Looking
from engine.decoding.prefill import prefill, prefill_together
from engine.memory.memory import Memory
from vision_add_ons.cache_views import plain_caches

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

CHUNK = 2048
"""Tokens of prompts that are run at once, as mlx-lm does it."""

GAP = 0.25
"""Seconds for which answers under way wait for prompts: chunks become smaller where the machine is
slow, and those of several prompts larger where it is fast. One picture, and tokens that see each
other whole, are run in one piece however long they take."""

FIRST = 0.5
"""Seconds for which answers that have no token yet wait for the prompts that came with theirs: a
step for a few of them takes as long as one for all."""

Steps = Generator[int, None, int]
"""Reads prompts: yields how many tokens were run, after a picture none; returns those of the end.

What has run out is decoded from then on."""

LEAST = 64
"""Tokens of the smallest chunk, and of the first one beside answers, when the pace is unknown."""


class Reading:
    """For the engine's thread alone."""

    def __init__(self, kit: "ModelKit", company: Company, memory: Memory) -> None:
        self._model: Any = kit.text_model
        self._company = company
        self._room = memory.room
        at_once = 1 if kit.add_on is None else kit.add_on.images_at_once
        self._looking = Looking(memory.features, at_once)
        self._rotates = memory.rotates
        # A cache that rotates serves at its borders alone, and those of others are elsewhere.
        self._sharing = memory.budget.max_bytes > 0 and not self._rotates
        self._waiting: dict[Answer, Answer | None] = {}
        """Those that have not begun, in their order, and the one that each waits for."""
        self._queue: deque[tuple[list[Answer], Steps]] = deque()
        """Prompts, and what reads them: one, or several at once."""
        self._stalled: Unread | None = None
        """One that waits for memory; those behind it wait too."""
        self._paces: deque[float] = deque(maxlen=4)
        """Seconds that a token of the latest chunks took: of each, as MLX prepares kernels anew for
        new lengths, on some machines longer than it then computes."""

    def __len__(self) -> int:
        return len(self._waiting) + (self._stalled is not None) + len(self._read_now)

    @property
    def _read_now(self) -> list[Answer]:
        """Those whose prompts are being read."""
        return [one for answers, _ in self._queue for one in answers if not one.generation.done]

    def add(self, answer: Answer) -> None:
        """Read an answer's prompt; then `Company` decodes it. Whatever happens, it ends."""
        self._waiting[answer] = None

    def go_on(self, until: float) -> bool:
        """Read all there is to read; less where it is a chunk's worth of prompts that go on, or
        takes until then, by `time.perf_counter`: then False.

        So those that come together are decoded together from their first token on: a step takes
        as long for one as for all of them.
        """
        self._begin()
        done = 0
        while self._queue:
            # In turns, so that a short prompt does not wait for all of a long one.
            answers, reading = self._queue.popleft()
            started = time.perf_counter()
            try:
                ran = next(reading)
            except StopIteration as end:
                ran = end.value
            else:
                self._queue.append((answers, reading))
                done += ran
            now = time.perf_counter()
            if ran:
                self._paces.append((now - started) / ran)
            if done >= CHUNK or now >= until:
                return False
        return time.perf_counter() < until

    def _begin(self) -> None:
        """Begin with those that need not wait for what others begin with too; in their order."""
        waiting: dict[Answer, Answer | None] = {}
        begun: list[Unread] = []
        stalled, self._stalled = self._stalled, None
        if stalled is not None:
            self._admit(stalled, begun)
        for answer, awaited in self._waiting.items():
            # An older one that waits for the same goes first.
            before = [*self._read_now, *(one.answer for one in begun), *waiting]
            if not answer.generation.cancelled:
                if self._sharing and awaited not in before:
                    awaited = next((other for other in before if other.shares(answer)), None)
                if awaited is not None or self._stalled is not None:
                    waiting[answer] = awaited
                    continue
            try:
                if self._sharing and len(self._company):
                    self._company.share_with(answer)
                rest = answer.begin()
            except BaseException as error:
                answer.end(*ending(error))
            else:
                self._admit(Unread(answer, rest), begun)
        self._waiting = waiting
        seeing = [one for one in begun if one.answer.prompt.spans]
        self._queue_up([one for one in begun if not one.answer.prompt.spans])
        if seeing:
            self._queue.append(([one.answer for one in seeing], self._look(seeing)))

    def _queue_up(self, prompts: Sequence[Unread]) -> None:
        """Have prompts read, in groups where they are alike."""
        for group in alike(prompts) if len(prompts) > 1 else [[one] for one in prompts]:
            answers = [one.answer for one in group]
            if len(group) > 1 and self._room.levels(answers):
                self._queue.append((answers, self._read_all(group)))
            else:
                self._queue += [([one.answer], self._read(one)) for one in group]

    def _admit(self, one: Unread, begun: list[Unread]) -> None:
        """Let one begin if there is memory for it."""
        try:
            one.answer.stop_if_cancelled()
            if self._room.admits(one.answer):
                begun.append(one)
            else:
                self._stalled = one
        except BaseException as error:
            one.answer.end(*ending(error))

    def _look(self, prompts: Sequence[Unread]) -> Steps:
        """Encode the pictures of prompts that began together, and have these read."""
        for _ in self._looking.encode([one.answer for one in prompts], GAP):
            yield 0
        ready = []
        for one in prompts:
            answer = one.answer
            try:
                one.embeddings = answer.embeddings(one.tokens)
                answer.look()
            except BaseException as error:
                answer.end(*ending(error))
            else:
                ready.append(one)
        self._queue_up(ready)
        return 0

    def step(self, most: int, rows: int = 1) -> int:
        """How many tokens of each of so many rows the next chunk has, at most `most` in all."""
        least = LEAST if len(self._company) else CHUNK
        size = max(least, int(GAP / min(self._paces))) if self._paces else least
        return max(1, min(size, most) // rows)

    # --- one prompt ------------------------------------------------------------------------------

    def _read(self, one: Unread) -> Steps:
        """Read what is left of a prompt."""
        answer, length, before = one.answer, len(one) - 1, 0
        try:
            assert answer.kv is not None
            reading = prefill(
                self._model,
                one.tokens,
                one.embeddings,
                answer.kv,
                answer.whole,
                answer.options,
                partial(self.step, answer.step),
                answer.border,
            )
            for done in reading:
                answer.progress(done, len(one))
                if before < done < length:
                    yield done - before
                    before = done
            self._share(answer)
            last = None if one.embeddings is None else one.embeddings[-1:]
            self._company.join(answer, mx.array([one.tokens[-1]]), last)
        except GeneratorExit:
            raise
        except BaseException as error:
            answer.end(*ending(error))
            return 0
        return length - before

    def _share(self, answer: Answer) -> None:
        """Leave what was read of a prompt to those that wait for it."""
        if answer.kv is not None and answer in self._waiting.values():
            answer.share(partial(plain_caches, answer.kv))

    # --- several ---------------------------------------------------------------------------------

    def _read_all(self, group: Sequence[Unread]) -> Steps:
        """Read prompts together."""
        left = {one.answer: len(one) for one in group}
        longest, before = max(left.values()) - 1, 0
        try:
            most = min(answer.step for answer in left) * len(group)
            reading = prefill_together(
                self._model,
                [one.tokens for one in group],
                [answer.kv or [] for answer in left],
                lambda: self.step(most, len(group)),
                [one.embeddings for one in group if one.embeddings is not None],
            )
            for answer, total in list(left.items()):
                if not _told(answer, 0, total):
                    del left[answer]
            while True:
                try:
                    done = next(reading)
                except StopIteration as end:
                    merged = [LaneCache(cache, [0] * len(group)) for cache in end.value]
                    break
                for answer, total in list(left.items()):
                    if not _told(answer, min(done, total - 2), total):
                        del left[answer]
                if not left:
                    return 0
                if done < longest:
                    yield (done - before) * len(group)
                    before = done
            joining = [
                i
                for i, one in enumerate(group)
                if one.answer in left and self._border(one, merged, i)
            ]
            left = {group[i].answer: 0 for i in joining}
            for answer in left:
                answer.kv = None  # the lane's, from now on
            if joining:
                for cache in merged:
                    cache.filter(joining)
                last = mx.array([group[i].tokens[-1] for i in joining])
                self._company.join_all(list(left), last, merged)
        except GeneratorExit:
            raise
        except BaseException as error:
            for answer in left:
                answer.end("error", error)
            return 0
        return (longest - before) * len(group)

    def _border(self, one: Unread, caches: Sequence[LaneCache], row: int) -> bool:
        """Keep what others, or later turns, go on from; whether the answer itself goes on."""
        answer, total = one.answer, len(one)
        awaited = answer in self._waiting.values()
        if self._rotates or awaited or answer.generation.cancelled:
            answer.kv = [cache.extract(row) for cache in caches]
        if not _told(answer, total - 1, total):
            return False
        self._share(answer)
        return True


def _told(answer: Answer, processed: int, total: int) -> bool:
    """Tell that so many tokens were run; False if it ended with that."""
    try:
        answer.progress(processed, total)
    except Cancelled:
        answer.end("cancelled")
        return False
    return True
