"""Generation options in the form that mlx-lm's loop takes."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from engine.options import GenerationOptions
from vision_add_ons.errors import NumericalError

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
Alternatives = tuple[tuple[int, float], ...]
"""Token ids and their log-probabilities."""

SMALLEST = 1e-6
"""Temperatures and top_p below it take the likeliest token."""


class Way(NamedTuple):
    """How tokens are drawn, in the bounds that mlx-lm's filters take."""

    temperature: float
    top_p: float
    min_p: float
    top_k: int

    @classmethod
    def of(cls, options: GenerationOptions, vocab_size: int) -> "Way":
        # mlx-lm divides by the temperature, and takes a top_p of 0 for none, and a tiny one for
        # less than the likeliest token has.
        if options.temperature < SMALLEST or options.top_p < SMALLEST:
            return GREEDY
        # It refuses a k that filters nothing.
        top_k = options.top_k if options.top_k < vocab_size else 0
        return cls(options.temperature, options.top_p, options.min_p, top_k)


GREEDY = Way(temperature=0.0, top_p=1.0, min_p=0.0, top_k=0)


class Sampler:
    """mlx-lm's sampler for these options, which also tells how likely its tokens were.

    It draws from the calling thread's random state.
    """

    def __init__(self, options: GenerationOptions, vocab_size: int) -> None:
        way = Way.of(options, vocab_size)
        self._greedy = way == GREEDY
        self._choose = make_sampler(way.temperature, way.top_p, way.min_p, top_k=way.top_k)
        self._alternatives = min(options.top_logprobs, vocab_size)
        self._told: deque[list[mx.array]] = deque()
        self.drawn: mx.array | None = None
        """The token, [1], that was drawn last."""

    def __call__(self, logprobs: mx.array) -> mx.array:
        """A token, [1], for log-probabilities [1, vocab_size]."""
        # Divided by a small temperature, float16 overflows.
        token = self._choose(logprobs if self._greedy else logprobs.astype(mx.float32))
        told = beside(logprobs, token, self._alternatives)
        self._told.append(told)
        # Computed along with the token: when mlx-lm's loop hands a token on, the next step is under
        # way, and whatever is asked for only then waits for that.
        self.drawn = mx.depends(token, told)
        return self.drawn

    def next(self) -> tuple[float, Alternatives]:
        """The log-probability of the next token, in the order of sampling, and the likeliest ones.

        Raises `NumericalError` if it is not finite, and it is not as soon as any logit is NaN or
        +infinity: softmax spreads them over the vocabulary. A logit of -infinity rules out its own
        token alone.
        """
        told = self._told.popleft()
        logprob = float(told[0])
        if not math.isfinite(logprob):
            raise not_finite()
        # As arrays of the processor: MLX would compute the parts behind the step under way.
        likeliest = [np.array(array)[0] for array in told[1:]]
        return logprob, alternatives_of(*likeliest) if likeliest else ()


def beside(logprobs: mx.array, tokens: mx.array, count: int) -> list[mx.array]:
    """What is told of `tokens`, [rows]: their log-probabilities, [rows, 1], and of the `count`
    likeliest, if any, ids and log-probabilities, [rows, count] each; in float32."""
    told = [mx.take_along_axis(logprobs, tokens[:, None], axis=-1).astype(mx.float32)]
    if count:
        ids = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
        told += [ids, mx.take_along_axis(logprobs, ids, axis=-1).astype(mx.float32)]
    return told


def not_finite() -> NumericalError:
    """What is raised for a token's log-probability that is not finite."""
    return NumericalError(
        "the model computed NaN or infinity instead of probabilities: its weights are "
        "damaged, or too large for their dtype; fetch it again, or convert it to bfloat16"
    )


def alternatives_of(ids: np.ndarray, values: np.ndarray) -> Alternatives:
    """Both [count] in any order; likeliest first, without tokens that the model rules out."""
    order = np.argsort(-values, kind="stable")
    return tuple((int(ids[i]), float(values[i])) for i in order if values[i] > -math.inf)


def logits_processors(
    options: GenerationOptions, cached_tokens: Sequence[int]
) -> list[LogitsProcessor]:
    """mlx-lm's processors for these options, seeing the tokens that came from the cache too.

    mlx-lm's loop shows a processor only the tokens that it ran itself, so a penalty would depend
    on how much of the prompt happened to be cached.
    """
    processors = make_logits_processors(
        logit_bias=dict(options.logit_bias) or None,
        repetition_penalty=options.repetition_penalty if options.repetition_penalty != 1 else None,
        repetition_context_size=options.penalty_context,
        presence_penalty=options.presence_penalty,
        presence_context_size=options.penalty_context,
        frequency_penalty=options.frequency_penalty,
        frequency_context_size=options.penalty_context,
    )
    if not processors:
        return []
    history = mx.array(list(cached_tokens[-options.penalty_context :]), dtype=mx.int32)

    def with_history(processor: LogitsProcessor) -> LogitsProcessor:
        return lambda tokens, logits: processor(mx.concatenate([history, tokens]), logits)

    if history.size:
        processors = [with_history(processor) for processor in processors]
    return [_in_range, *processors]


def _in_range(_: mx.array, logits: mx.array) -> mx.array:
    """Logits that penalties and biases cannot push over the end of their dtype: float16 has one at
    65,504. bfloat16 has the range of float32, and stays as mlx-lm has it."""
    return logits.astype(mx.float32) if logits.dtype == mx.float16 else logits
