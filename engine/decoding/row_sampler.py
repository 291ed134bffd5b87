"""The tokens of answers that are decoded together, drawn together, each as if it were alone."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from engine.decoding.sampling import GREEDY, Alternatives, Way, alternatives_of, beside, not_finite
from engine.options import GenerationOptions


def draw(way: Way, logprobs: mx.array, uniform: mx.array) -> mx.array:
    """Tokens [rows] for log-probabilities [rows, vocab_size], by one number of [0, 1) a row.

    With the filters of mlx-lm, in its order, and drawn as `mx.random.categorical` draws.
    """
    if way == GREEDY:
        return mx.argmax(logprobs, axis=-1)
    logprobs = logprobs.astype(mx.float32)  # divided by a small temperature, float16 overflows
    if 0 < way.top_p < 1:
        logprobs = apply_top_p(logprobs, way.top_p)
    if way.min_p:
        logprobs = apply_min_p(logprobs, way.min_p)
    if way.top_k:
        logprobs = apply_top_k(logprobs, way.top_k)
    return _drawn(logprobs, 1 / way.temperature, uniform)


def _drawn(logprobs: mx.array, scale: float, uniform: mx.array) -> mx.array:
    logits = logprobs * scale
    likeliest = mx.argmax(logits, axis=-1, keepdims=True)
    sums = mx.cumsum(mx.exp(logits - mx.take_along_axis(logits, likeliest, -1)), axis=-1)
    index = (sums <= uniform[:, None] * sums[:, -1:]).sum(axis=-1, keepdims=True)
    # Rounded up to the whole sum, a number lies behind all tokens.
    return mx.where(index < logits.shape[-1], index, likeliest)[:, 0].astype(mx.uint32)


class Row:
    """What one answer needs: its way, its key, and what was told of its tokens."""

    def __init__(self, options: GenerationOptions, seed: int, vocab_size: int) -> None:
        self.way = Way.of(options, vocab_size)
        self.key = mx.random.key(seed)
        self.count = min(options.top_logprobs, vocab_size)
        self.told: list[tuple[_Told, int]] = []
        """Of each token not yet delivered: what was computed for all rows, and the row's index."""

    def next(self) -> tuple[float, Alternatives]:
        """The log-probability of the next token, in the order of drawing, and the likeliest ones.

        Raises `NumericalError` if it is not finite; see `engine.decoding.sampling`.
        """
        told, i = self.told.pop(0)
        logprobs, *likeliest = told.rows
        logprob = float(logprobs[i, 0])
        if not math.isfinite(logprob):
            raise not_finite()
        if not self.count:
            return logprob, ()
        return logprob, alternatives_of(*(array[i] for array in likeliest))[: self.count]


class _Told:
    """What was computed beside the tokens of a step."""

    def __init__(self, arrays: Sequence[mx.array]) -> None:
        self.arrays = arrays

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """The same for the processor: an array of MLX's that is asked for one of its numbers has it
        computed, and waits for the next step, which is under way by then."""
        return [np.array(array) for array in self.arrays]


class RowSampler:
    """Draws for all rows of a batch at once; a row's draws depend on its own key alone."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self._keys = mx.stack([row.key for row in self.rows])
        self._ahead: list[mx.array] = []
        """The keys before, and after each of the tokens that were drawn ahead."""

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Tokens [rows] for log-probabilities [rows, vocab_size]."""
        tokens = self._tokens(logprobs)
        told = beside(logprobs, tokens, max(row.count for row in self.rows))
        shared = _Told(told)
        for i, row in enumerate(self.rows):
            row.told.append((shared, i))
        # Computed along with the tokens: see `engine.decoding.sampling.Sampler`.
        drawn: mx.array = mx.depends(tokens, told)
        return drawn

    def _tokens(self, logprobs: mx.array) -> mx.array:
        ways: dict[Way, list[int]] = {}
        for i, row in enumerate(self.rows):
            ways.setdefault(row.way, []).append(i)
        if list(ways) == [GREEDY]:
            return mx.argmax(logprobs, axis=-1)
        pairs = _split(self._keys)
        self._keys = pairs[:, 0]
        uniform = _uniform(pairs[:, 1])
        if len(ways) == 1:
            return draw(next(iter(ways)), logprobs, uniform)
        parts = []
        order: list[int] = []
        for way, indices in ways.items():
            chosen = mx.array(indices)
            parts.append(draw(way, logprobs[chosen], uniform[chosen]))
            order += indices
        back = sorted(range(len(order)), key=order.__getitem__)
        return mx.concatenate(parts)[mx.array(back)]

    def along(self, logprobs: mx.array) -> mx.array:
        """Tokens [places] of a row that is alone, for log-probabilities [places, vocab_size] at so
        many places one after the other; each as it would be drawn in its turn.

        `keep` then says how many of them came to be.
        """
        (row,) = self.rows
        self._ahead = [self._keys]
        if row.way == GREEDY:
            tokens = mx.argmax(logprobs, axis=-1)
            self._ahead *= len(logprobs) + 1
        else:
            uniform = []
            for _ in range(len(logprobs)):
                pairs = _split(self._ahead[-1])
                self._ahead.append(pairs[:, 0])
                uniform.append(_uniform(pairs[:, 1]))
            tokens = draw(row.way, logprobs, mx.concatenate(uniform))
        told = beside(logprobs, tokens, row.count)
        shared = _Told(told)
        row.told += [(shared, i) for i in range(len(logprobs))]
        drawn: mx.array = mx.depends(tokens, told)
        return drawn

    def keep(self, count: int) -> None:
        """Of those that were drawn ahead, the first `count` are the row's."""
        (row,) = self.rows
        del row.told[len(row.told) - (len(self._ahead) - 1 - count) :]
        self._keys = self._ahead[count]

    def extend(self, other: "RowSampler") -> None:
        """Draw for those rows too, behind one's own."""
        self.rows += other.rows
        self._keys = mx.concatenate([self._keys, other._keys])

    def filter(self, keep: Sequence[int]) -> None:
        """Draw for the rows at these indices alone."""
        self.rows = [self.rows[i] for i in keep]
        self._keys = self._keys[mx.array(list(keep))]

    def part(self, chosen: Sequence[int]) -> "RowSampler":
        """What draws for the rows at these indices from here on."""
        part = RowSampler(self.rows)
        part._keys = self._keys
        part.filter(chosen)
        return part


_split: Callable[[mx.array], mx.array] = mx.vmap(mx.random.split)
_uniform: Callable[[mx.array], mx.array] = mx.vmap(lambda key: mx.random.uniform(key=key))
