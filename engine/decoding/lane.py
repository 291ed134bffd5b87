"""Answers decoded together, over mlx-lm's batch caches; each row as if it were alone.

A row that is alone keeps its plain caches, and so mlx-lm's kernels for one; when a second joins,
they become batch caches in place, and plain again when one is left.
"""

import logging
from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
from mlx_lm.generate import generation_stream

from engine.decoding.drawn import Drawn, DrawnToken
from engine.decoding.guide import AnswerGuide
from engine.decoding.prefill import prefill_together
from engine.decoding.row_sampler import RowSampler
from engine.decoding.sampling import LogitsProcessor

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

log = logging.getLogger("sightline")

T = TypeVar("T")

ALIKE = 0.05
"""How far the logits of a row may be from those that it has alone, for the rounding of bfloat16."""


class LaneCache:
    """One layer's KV cache of all rows: plain while there is one, else mlx-lm's batch of it."""

    def __init__(self, cache: Any, shifts: Sequence[int]) -> None:
        """A plain cache of one row, or a batch cache of several.

        `shifts` are what the rows' next tokens stand behind their index; see `CacheView.shift`.
        """
        self._cache = cache
        self._shifts = list(shifts)
        self._alone = len(self._shifts) == 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_cache"], name)

    @property
    def state(self) -> Any:
        """The arrays of the cache."""
        return self._cache.state

    def __getitem__(self, index: int) -> mx.array:
        """One of the arrays of a cache that keeps states, as of convolutions."""
        array: mx.array = self._cache[index]
        return array

    def __setitem__(self, index: int, array: mx.array) -> None:
        self._cache[index] = array

    @property
    def offset(self) -> Any:
        """The position of the next token: a number of a row alone, else an array, [rows]."""
        if self._alone:
            return self._cache.offset + self._shifts[0]
        offset = self._cache.offset
        return offset + mx.array(self._shifts) if any(self._shifts) else offset

    def extend(self, others: Sequence["LaneCache"]) -> None:
        """Take the others' rows behind one's own; the others are used up."""
        every = [self, *others]
        if all(one._alone for one in every):
            self._cache = type(self._cache).merge([one._cache for one in every])
        else:
            self._cache = self._batch()
            for other in others:
                self._cache.extend(other._batch())
        self._shifts = [shift for one in every for shift in one._shifts]
        self._alone = False
        for other in others:
            other._cache = None  # or what it held would be kept beside its copy

    def _batch(self) -> Any:
        return type(self._cache).merge([self._cache]) if self._alone else self._cache

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows at these indices, if any."""
        self._shifts = [self._shifts[i] for i in keep]
        if not keep:
            self._cache = None
        elif not self._alone:
            self._cache.filter(mx.array(list(keep)))
            if len(keep) == 1:
                self._cache, self._alone = self._cache.extract(0), True

    def extract(self, index: int) -> Any:
        """A row's cache, plain."""
        return self._cache if self._alone else self._cache.extract(index)

    def part(self, chosen: Sequence[int]) -> "LaneCache":
        """The rows at these indices, in a cache of their own."""
        caches = [self.extract(i) for i in chosen]
        cache = caches[0] if len(caches) == 1 else type(caches[0]).merge(caches)
        return LaneCache(cache, [self._shifts[i] for i in chosen])


class LaneRow:
    """What a lane knows of a row beside what is drawn for it."""

    def __init__(
        self,
        name: int,
        length: int,
        processors: Sequence[LogitsProcessor],
        guide: AnswerGuide | None = None,
    ) -> None:
        """`length` is how many tokens the row's caches hold."""
        self.name = name
        self.length = length
        self.processors = processors
        self.guide = guide
        self._begun = False
        self._tokens: mx.array | None = None

    def process(self, token: mx.array, logits: mx.array) -> mx.array:
        """Logits [1, vocab_size] after `token`, [1], by its processors, which see all tokens."""
        if not self.processors:
            return logits
        seen = token if self._tokens is None else mx.concatenate([self._tokens, token])
        self._tokens = seen
        for process in self.processors:
            logits = process(seen, logits)
        return logits

    def allowed(self, token: DrawnToken) -> mx.array | None:
        """Which tokens may follow `token`, [vocab_size]; None for all. To be asked once a token."""
        if self.guide is None:
            return None
        begun, self._begun = self._begun, True
        return self.guide.after(token if begun else None)


class Lane:
    """Rows that are decoded together, a token of each a step. For one thread."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[LaneRow],
        last: mx.array,
        caches: Sequence[LaneCache],
        sampler: RowSampler,
    ) -> None:
        """Rows whose `caches` hold their texts up to the `last` tokens, [rows].

        `sampler` draws for them, in the same order.
        """
        self._model = model
        self.rows = list(rows)
        self.caches = list(caches)
        self._sampler = sampler
        self._next = last
        """What the next step runs, [rows], being computed; and delivers, unless it is new."""
        self.new = True
        """Whether all that was drawn of it was delivered: it has to `begin`."""
        self._steps = 0

    @property
    def names(self) -> list[int]:
        """Whose rows these are."""
        return [row.name for row in self.rows]

    def first(self, caches: Sequence[Any], embedding: mx.array | None) -> int:
        """The first token of a row whose prompt's last one needs its views or its row.

        `caches` are those of the lane, in their views; `embedding` has shape [1, hidden_size].
        """
        with mx.stream(generation_stream):
            extra = {} if embedding is None else {"input_embeddings": embedding[None]}
            self._next = self._draw(self._next, caches, **extra)
            return int(self._next)

    def begin(self) -> None:
        """Draw the first tokens of a lane that is new."""
        with mx.stream(generation_stream):
            self._next = self._draw(self._next, self.caches)
        self.new = False

    def _draw(self, tokens: mx.array, caches: Sequence[Any], **extra: mx.array) -> mx.array:
        """What comes after `tokens`, [rows], as mlx-lm's `generate_step` draws it."""
        logits = self._model(tokens[:, None], cache=caches, **extra)[:, -1, :]
        if any(row.processors for row in self.rows):
            parts = [
                row.process(tokens[i : i + 1], logits[i : i + 1]) for i, row in enumerate(self.rows)
            ]
            logits = mx.concatenate(parts)
        if any(row.guide is not None for row in self.rows):
            # Computed while we wait for the tokens before, and look what may follow them.
            drawn = Drawn(tokens, logits)
            masks = [row.allowed(drawn[i]) for i, row in enumerate(self.rows)]
            every = mx.ones(logits.shape[-1:], mx.bool_)
            allowed = mx.stack([every if mask is None else mask for mask in masks])
            logits = mx.where(allowed, logits, -mx.inf)
        following = self._sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.async_eval(following)
        for row in self.rows:
            row.length += 1
        return following

    def step(self) -> list[tuple[int, int]]:
        """Each row's name and its next token; what was told of it is at its `Row`.

        The step after it is under way by then.
        """
        tokens = self._next
        with mx.stream(generation_stream):
            self._next = self._draw(tokens, self.caches)
            told: list[int] = tokens.tolist()  # type: ignore[assignment]
        self._steps += 1
        if self._steps % 256 == 0:  # as mlx-lm's loop does
            mx.clear_cache()
        return [(row.name, token) for row, token in zip(self.rows, told, strict=True)]

    def take(self, name: int) -> list[Any]:
        """A row's plain caches, which hold all tokens that were delivered."""
        index = self.names.index(name)
        with mx.stream(generation_stream):
            caches = [cache.extract(index) for cache in self.caches]
            # Whoever looks at them later need not be this thread, whose stream it is.
            mx.async_eval([cache.state for cache in caches])
        return caches

    def leave(self, names: Collection[int]) -> dict[int, list[Any]]:
        """Leave these rows out from now on; of each its plain caches, as `take` gives them."""
        if len(self.rows) == 1:
            return {name: self.take(name) for name in names}
        chosen, keep = self._split(names)
        left: dict[int, list[Any]] = {self.rows[i].name: [] for i in chosen}
        with mx.stream(generation_stream):
            for cache in self.caches:
                rows = [cache.extract(i) for i in chosen]
                cache.filter(keep)
                # A layer after the other: there are never two copies.
                mx.eval([row.state for row in rows], cache.state if keep else [])
                for caches, row in zip(left.values(), rows, strict=True):
                    caches.append(row)
        if keep:
            self._keep(keep)
        return left

    def _split(self, names: Collection[int]) -> tuple[list[int], list[int]]:
        """The indices of these rows, and those of the others."""
        chosen = [i for i, row in enumerate(self.rows) if row.name in names]
        return chosen, [i for i in range(len(self.rows)) if i not in chosen]

    def _keep(self, keep: Sequence[int]) -> None:
        """Forget the rows but for these, which the caches did already."""
        with mx.stream(generation_stream):
            self._next = self._next[mx.array(list(keep))]
        self.rows = [self.rows[i] for i in keep]
        self._sampler.filter(keep)

    def part(self, names: Collection[int]) -> "Lane":
        """Have these rows, which are not all, leave into a lane of their own."""
        chosen, keep = self._split(names)
        caches = []
        with mx.stream(generation_stream):
            for cache in self.caches:
                caches.append(cache.part(chosen))
                cache.filter(keep)
                mx.eval(cache.state, caches[-1].state)  # a layer after the other, as above
            last = self._next[mx.array(chosen)]
        rows = [self.rows[i] for i in chosen]
        part = Lane(self._model, rows, last, caches, self._sampler.part(chosen))
        part.new = self.new
        self._keep(keep)
        return part

    def extend(self, others: Sequence["Lane"]) -> None:
        """Take the rows of others behind one's own; the others are used up.

        All of them are new, or none.
        """
        with mx.stream(generation_stream):
            for ours, *theirs in zip(self.caches, *(one.caches for one in others), strict=True):
                ours.extend(theirs)
                mx.eval(ours.state)  # a layer after the other, as above
            for other in others:
                self._sampler.extend(other._sampler)
            self._next = mx.concatenate([self._next, *(other._next for other in others)])
        self.rows += [row for other in others for row in other.rows]


def decodes_together(kit: "ModelKit") -> bool:
    """Whether rows of a model can be decoded together: two are tried, and held against each alone.

    Quantized KV caches cannot be merged, and some decoders take no batch of them, or take padding
    for tokens.
    """
    model: Any = kit.text_model
    if not kit.merges:
        return False
    prompts = [[i % kit.vocab_size for i in row] for row in ((3, 5, 7, 11, 13), (17, 19))]
    last = mx.array([[prompt[-1]] for prompt in prompts])
    try:
        reading = prefill_together(model, prompts, [kit.make_cache() for _ in prompts], lambda: 8)
        merged = _result(reading)
        with mx.stream(generation_stream):
            ours = model(last, cache=[LaneCache(cache, (0, 0)) for cache in merged])[:, -1]
            for row, prompt, expected in zip(ours, prompts, last, strict=True):
                caches = kit.make_cache()
                model(mx.array([prompt[:-1]]), cache=caches)
                theirs = model(expected[None], cache=caches)[0, -1].astype(mx.float32)
                apart = mx.linalg.norm(row.astype(mx.float32) - theirs)
                # NaN is not below it either.
                if not bool(apart <= ALIKE * mx.linalg.norm(theirs)):
                    raise ValueError("a row of two is not what it is alone")
    except Exception as error:
        log.info("answers are made one after the other: %s", error)
        kit.report.at_once = f"one answer: {error}"
        return False
    return True


def _result(steps: Generator[Any, None, T]) -> T:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
