"""Answers decoded together, over mlx-lm's batch caches; each row as if it were alone.

A row that is alone keeps its plain caches, and so mlx-lm's kernels for one; when a second joins,
they become batch caches in place, and plain again when one is left.
"""

import logging
from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
from mlx_lm.generate import generation_stream

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

    @property
    def offset(self) -> Any:
        """The position of the next token: a number of a row alone, else an array, [rows]."""
        if self._alone:
            return self._cache.offset + self._shifts[0]
        offset = self._cache.offset
        return offset + mx.array(self._shifts) if any(self._shifts) else offset

    def extend(self, other: "LaneCache") -> None:
        """Take the other's rows behind one's own."""
        self._cache = self._batch()
        self._alone = False
        self._cache.extend(other._batch())
        self._shifts += other._shifts

    def _batch(self) -> Any:
        return type(self._cache).merge([self._cache]) if self._alone else self._cache

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows at these indices."""
        self._shifts = [self._shifts[i] for i in keep]
        if self._alone:
            return
        self._cache.filter(mx.array(list(keep)))
        if len(keep) == 1:
            self._cache, self._alone = self._cache.extract(0), True

    def extract(self, index: int) -> Any:
        """A row's cache, plain."""
        return self._cache if self._alone else self._cache.extract(index)


class _Row:
    """What the lane knows of a row beside what is drawn for it."""

    def __init__(self, name: int, processors: Sequence[LogitsProcessor]) -> None:
        self.name = name
        self.processors = processors
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


class Lane:
    """Rows that are decoded together, a token of each a step. For one thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._rows: list[_Row] = []
        self._caches: list[LaneCache] = []
        self._sampler = RowSampler(())
        self._next: mx.array | None = None
        """The tokens that the next step delivers, [rows]; being computed."""
        self._steps = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        names: Sequence[int],
        last: mx.array,
        caches: Sequence[LaneCache],
        sampler: RowSampler,
        processors: Sequence[Sequence[LogitsProcessor]],
    ) -> None:
        """Decode the rows of `sampler` from their `last` tokens, [rows], on.

        `caches` hold the tokens before those.
        """
        rows = [_Row(*row) for row in zip(names, processors, strict=True)]
        with mx.stream(generation_stream):
            drawn = self._draw(rows, last, caches, sampler)
            if self._next is None:
                self._caches, self._sampler, self._next = list(caches), sampler, drawn
            else:
                for ours, new in zip(self._caches, caches, strict=True):
                    ours.extend(new)
                self._sampler.extend(sampler)
                self._next = mx.concatenate([self._next, drawn])
        self._rows += rows

    def first(
        self,
        last: mx.array,
        embedding: mx.array | None,
        caches: Sequence[Any],
        sampler: RowSampler,
        processors: Sequence[LogitsProcessor],
    ) -> mx.array:
        """The first token, [1], of a row whose prompt's `last` one needs its views or its row.

        `embedding` has shape [1, hidden_size].
        """
        with mx.stream(generation_stream):
            extra = {} if embedding is None else {"input_embeddings": embedding[None]}
            return self._draw([_Row(0, processors)], last, caches, sampler, **extra)

    def _draw(
        self,
        rows: Sequence[_Row],
        tokens: mx.array,
        caches: Sequence[Any],
        sampler: RowSampler,
        **extra: mx.array,
    ) -> mx.array:
        """What comes after `tokens`, [rows], as mlx-lm's `generate_step` draws it."""
        logits = self._model(tokens[:, None], cache=caches, **extra)[:, -1, :]
        if any(row.processors for row in rows):
            parts = [
                row.process(tokens[i : i + 1], logits[i : i + 1]) for i, row in enumerate(rows)
            ]
            logits = mx.concatenate(parts)
        drawn = sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.async_eval(drawn)
        return drawn

    def step(self) -> list[tuple[int, int]]:
        """Each row's name and its next token; what was told of it is at its `Row`.

        The step after it is under way by then.
        """
        if self._next is None:
            return []
        tokens = self._next
        with mx.stream(generation_stream):
            self._next = self._draw(self._rows, tokens, self._caches, self._sampler)
            told: list[int] = tokens.tolist()  # type: ignore[assignment]
        self._steps += 1
        if self._steps % 256 == 0:  # as mlx-lm's loop does
            mx.clear_cache()
        return [(row.name, token) for row, token in zip(self._rows, told, strict=True)]

    def take(self, name: int) -> list[Any]:
        """A row's plain caches, which hold all tokens that were delivered."""
        index = [row.name for row in self._rows].index(name)
        with mx.stream(generation_stream):
            caches = [cache.extract(index) for cache in self._caches]
            # Whoever looks at them later need not be this thread, whose stream it is.
            mx.async_eval([cache.state for cache in caches])
        return caches

    def drop(self, names: Collection[int]) -> None:
        """Leave these rows out from now on."""
        keep = [i for i, row in enumerate(self._rows) if row.name not in names]
        if len(keep) == len(self._rows):
            return
        if not keep or self._next is None:
            self.clear()
            return
        with mx.stream(generation_stream):
            for cache in self._caches:
                cache.filter(keep)
            self._next = self._next[mx.array(keep)]
        self._rows = [self._rows[i] for i in keep]
        self._sampler.filter(keep)

    def clear(self) -> None:
        """Leave all rows out."""
        self._rows, self._caches, self._next = [], [], None
        self._sampler = RowSampler(())


def decodes_together(kit: "ModelKit") -> bool:
    """Whether rows of a model can be decoded together: two are tried, and held against each alone.

    Quantized KV caches cannot be merged, and some decoders take no batch of them, or take padding
    for tokens.
    """
    model: Any = kit.text_model
    if model is None or not all(hasattr(cache, "merge") for cache in kit.make_cache()):
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
