"""Answers decoded together, over mlx-lm's `GenerationBatch`; each row as if it were alone.

A row that is alone keeps its plain caches, and so mlx-lm's kernels for one; when a second joins,
they become batch caches in place, and plain again when one is left.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, StopSequences, generation_stream

from engine.decoding.row_sampler import Row, RowSampler
from engine.decoding.sampling import LogitsProcessor
from engine.options import GenerationOptions

log = logging.getLogger("sightline")


ENDLESS = 2**31
"""More tokens than any answer has: rows are dropped from outside."""


class LaneCache:
    """One layer's KV cache of all rows: plain while there is one, else mlx-lm's batch of it."""

    def __init__(self, cache: Any, shift: int) -> None:
        """`shift` is what a row's next token stands behind its index; see `CacheView.shift`."""
        self._cache = cache
        self._shifts = [shift]
        self._alone = True

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


def decodes_together(model: Any, make_cache: Callable[[], list[Any]], vocab_size: int) -> bool:
    """Whether mlx-lm can decode rows of this model together: two are tried, for two tokens.

    Quantized KV caches cannot be merged, and some decoders take no batch of them.
    """
    if not all(hasattr(cache, "merge") for cache in make_cache()):
        return False
    lane = Lane(model)
    try:
        for name in range(2):
            caches = make_cache()
            with mx.stream(generation_stream):
                model(mx.zeros((1, name + 1), dtype=mx.int32), cache=caches)
            sampler = RowSampler([Row(GenerationOptions(), 0, vocab_size)])
            lane.add(name, mx.array([0]), caches, 0, sampler, ())
        return all(len(lane.step()) == 2 for _ in range(2)) and bool(lane.take(0))
    except Exception as error:
        log.info("answers are made one after the other (%s)", error)
        log.debug("decoding together failed", exc_info=error)
        return False


class Lane:
    """Rows that are decoded together. For one thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._batch: GenerationBatch | None = None
        self._sampler: RowSampler | None = None

    def __len__(self) -> int:
        return 0 if self._batch is None else len(self._batch)

    def add(
        self,
        name: int,
        last: mx.array,
        caches: Sequence[Any],
        shift: int,
        sampler: RowSampler,
        processors: Sequence[LogitsProcessor],
    ) -> None:
        """Decode a row, `sampler`'s only one, from its `last` token, [1], on.

        `caches`, plain ones, hold the tokens before it.
        """
        with mx.stream(generation_stream):
            batch = GenerationBatch(
                self._model,
                [name],
                last,
                [LaneCache(cache, shift) for cache in caches],
                [[]],
                [None],
                sampler,
                [list(processors)],
                [StopSequences()],
                [ENDLESS],
            )
            if self._batch is None or self._sampler is None:
                self._batch, self._sampler = batch, sampler
            else:
                self._batch.extend(batch)
                self._sampler.extend(sampler)

    def first(
        self,
        last: mx.array,
        embedding: mx.array | None,
        caches: Sequence[Any],
        sampler: RowSampler,
        processors: Sequence[LogitsProcessor],
    ) -> mx.array:
        """The first token, [1], of a row whose prompt's `last` one needs its views or its row.

        As mlx-lm's `generate_step` draws it. `embedding` has shape [1, hidden_size].
        """
        with mx.stream(generation_stream):
            extra = {} if embedding is None else {"input_embeddings": embedding[None]}
            logits = self._model(last[None], cache=caches, **extra)[:, -1, :]
            for process in processors:
                logits = process(last, logits)
            return sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    def step(self) -> list[tuple[int, int]]:
        """Each row's name and its next token; what was told of it is at its `Row`."""
        if self._batch is None:
            return []
        with mx.stream(generation_stream):
            return [(response.uid, int(response.token)) for response in self._batch.next()]

    def take(self, name: int) -> list[Any]:
        """A row's plain caches, which hold all tokens that were delivered."""
        assert self._batch is not None
        with mx.stream(generation_stream):
            caches: list[Any] = self._batch.extract_cache(self._batch.uids.index(name))
        return caches

    def drop(self, names: Sequence[int]) -> None:
        """Leave these rows out from now on."""
        if self._batch is None or self._sampler is None:
            return
        keep = [i for i, name in enumerate(self._batch.uids) if name not in names]
        if not keep:
            self._batch = self._sampler = None
            return
        with mx.stream(generation_stream):
            self._batch.filter(keep)
        self._sampler.filter(keep)

    def clear(self) -> None:
        """Leave all rows out."""
        self._batch = self._sampler = None
