"""Answers decoded together, over mlx-lm's batch caches; each row as if it were alone.

A row that is alone keeps its plain caches, and so mlx-lm's kernels for one; when a second joins,
they become batch caches in place, and plain again when one is left.
"""

from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from engine.decoding.drawn import Drawn
from engine.decoding.lane_row import LaneRow
from engine.decoding.row_sampler import RowSampler
from engine.memory import kv_state
from vision_add_ons.cache_views import tokens_in

MOST_BEHIND = 16
"""Tokens that caches which cannot be trimmed may lack, to be run with the next draft: a few more
take a step hardly longer."""


class LaneCache:
    """One layer's KV cache of all rows: plain while there is one, else mlx-lm's batch of it."""

    def __init__(self, cache: Any, shifts: Sequence[int]) -> None:
        """A plain cache of one row, or a batch cache of several.

        `shifts` are what the rows' next tokens stand behind their index; see `CacheView.shift`.
        """
        self._cache = cache
        self.shifts = list(shifts)
        self._alone = len(self.shifts) == 1

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
            return self._cache.offset + self.shifts[0]
        offset = self._cache.offset
        return offset + mx.array(self.shifts) if any(self.shifts) else offset

    def extend(self, others: Sequence["LaneCache"]) -> None:
        """Take the others' rows behind one's own; the others are used up."""
        every = [self, *others]
        if all(one._alone for one in every):
            self._cache = type(self._cache).merge([one._cache for one in every])
        else:
            self._cache = self._batch()
            for other in others:
                self._cache.extend(other._batch())
        self.shifts = [shift for one in every for shift in one.shifts]
        self._alone = False
        for other in others:
            other._cache = None  # or what it held would be kept beside its copy

    def _batch(self) -> Any:
        return type(self._cache).merge([self._cache]) if self._alone else self._cache

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows at these indices, if any."""
        self.shifts = [self.shifts[i] for i in keep]
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
        return LaneCache(cache, [self.shifts[i] for i in chosen])


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
        self._behind: list[int] = []
        """What was delivered of a row that is alone, and is not in its caches yet."""
        self._marked: tuple[int, kv_state.Snapshot] | None = None
        """Where caches that cannot be trimmed were before the latest draft, to come back to."""

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
        drawn = self._sampler(self._logprobs(tokens, logits))
        mx.async_eval(drawn)
        for row in self.rows:
            row.length += 1
        return drawn

    def _logprobs(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """What tokens are drawn by, [rows, vocab_size], after `tokens`, [rows]."""
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
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def step(self) -> list[tuple[int, int]]:
        """Each row's name and its next token; what was told of it is at its `Row`.

        The step after it is under way by then.
        """
        tokens = self._next
        if self._behind or self._marked:
            self.catch_up()
        with mx.stream(generation_stream):
            self._next = self._draw(tokens, self.caches)
            told: list[int] = tokens.tolist()  # type: ignore[assignment]
        self._stepped()
        return [(row.name, token) for row, token in zip(self.rows, told, strict=True)]

    def _stepped(self) -> None:
        self._steps += 1
        if self._steps % 256 == 0:  # as mlx-lm's loop does
            mx.clear_cache()

    # --- a row that is alone, with drafts ---------------------------------------------------------

    @property
    def next(self) -> mx.array:
        """The tokens, [rows], that the next step delivers, which may still be being computed."""
        return self._next

    def verify(self, drafted: mx.array) -> list[tuple[int, int]]:
        """As `step`, of a row that is alone, with `drafted`, [count], as what may come behind.

        All of it is run at once, and a token drawn behind each as it would be in its turn: it is
        the model's own, whatever was drafted. Those that are what was drafted are delivered too.
        """
        if len(self._behind) > MOST_BEHIND:
            self.catch_up()
        row, behind = self.rows[0], len(self._behind)
        with mx.stream(generation_stream):
            run = mx.concatenate([self._next, drafted])
            if behind:
                run = mx.concatenate([mx.array(self._behind, dtype=run.dtype), run])
            self._mark(len(run))
            logits = self._model(run[None], cache=self.caches)[0, behind:]
            run = run[behind:]
            spoiled = mx.isnan(logits[0]).any()
            if row.guide is None:
                drawn = self._drawn_ahead(run, logits)
                mx.eval(drawn, spoiled)
            if spoiled.item():
                return self._undrafted(len(run))
            if row.guide is not None:
                drawn = self._drawn_in_turn(run, logits)
            told: list[int] = run.tolist()  # type: ignore[assignment]
            ours: list[int] = drawn.tolist()  # type: ignore[assignment]
        count = 0
        while count < len(drafted) and ours[count] == told[count + 1]:
            count += 1
        if row.guide is None:
            row.forget(len(drafted) - count)
            self._sampler.keep(count + 1)
        told = told[: count + 1]
        row.length += len(told)
        self._behind = self._go_back(len(drafted) - count, told)
        self._next = drawn[count : count + 1]
        self._stepped()
        return [(row.name, token) for token in told]

    def _undrafted(self, count: int) -> list[tuple[int, int]]:
        """A step, as if the `count` tokens that were run had not been.

        What is computed of a drafted token may be infinite, which those before it do not see but by
        a factor of nothing, and that makes it NaN.
        """
        if self.rows[0].guide is None:
            self.rows[0].forget(count)
            self._sampler.keep(0)
        self._behind = self._go_back(count, ())
        return self.step()

    def _drawn_ahead(self, run: mx.array, logits: mx.array) -> mx.array:
        """The tokens behind those of `run`, [places], drawn all at once."""
        if self.rows[0].processors:
            places = [self._logprobs(run[i : i + 1], logits[i : i + 1]) for i in range(len(run))]
            return self._sampler.along(mx.concatenate(places))
        return self._sampler.along(self._logprobs(run, logits))

    def _drawn_in_turn(self, run: mx.array, logits: mx.array) -> mx.array:
        """As far as they are what was drafted: a guide does not go back, and sees no others."""
        drawn = []
        for i in range(len(run)):
            logprobs = self._logprobs(run[i : i + 1], logits[i : i + 1])
            drawn.append(self._sampler.along(logprobs))
            self._sampler.keep(1)
            if i + 1 == len(run) or int(drawn[-1]) != int(run[i + 1]):
                break
        return mx.concatenate(drawn)

    def _mark(self, count: int) -> None:
        """Be able to come back to here when `count` tokens more were run."""
        kv = [cache.extract(0) for cache in self.caches]
        self._marked = None
        if not kv_state.trims_after(kv, count):
            self._marked = tokens_in(kv), kv_state.snapshot(kv)

    def _go_back(self, count: int, told: Sequence[int]) -> list[int]:
        """Have the last `count` tokens not run that were; `told` are those that stay.

        Returns the delivered ones that the caches do not hold then: what cannot be trimmed comes
        back to where it was before, and has them run with the next draft.
        """
        if not count:
            return []
        kv = [cache.extract(0) for cache in self.caches]
        length, state = self._marked or (tokens_in(kv) - count, [])
        back = kv_state.shortened(kv, {length: state}, length)
        self.caches = [
            LaneCache(plain, cache.shifts) for plain, cache in zip(back, self.caches, strict=True)
        ]
        return [*self._behind, *told] if self._marked else []

    def take_back(self, count: int) -> None:
        """The last `count` tokens that `verify` told are not of the answer, which ended before."""
        self.rows[0].length -= count
        if not self._behind:
            self._go_back(count, ())

    def catch_up(self) -> None:
        """Run what was delivered and is not in the caches."""
        self._marked = None
        if self._behind:
            with mx.stream(generation_stream):
                self._model(mx.array([self._behind]), cache=self.caches)
                mx.eval([cache.state for cache in self.caches])
            self._behind = []

    def take(self, name: int) -> list[Any]:
        """A row's plain caches, which hold the tokens that were delivered; where they cannot be
        trimmed, they may lack the latest of those that `verify` told."""
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
        for lane in (self, *others):
            lane.catch_up()
        with mx.stream(generation_stream):
            for ours, *theirs in zip(self.caches, *(one.caches for one in others), strict=True):
                ours.extend(theirs)
                mx.eval(ours.state)  # a layer after the other, as above
            for other in others:
                self._sampler.extend(other._sampler)
            self._next = mx.concatenate([self._next, *(other._next for other in others)])
        self.rows += [row for other in others for row in other.rows]
