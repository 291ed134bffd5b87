"""Generation options in the form that mlx-lm's loop takes."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from engine.options import GenerationOptions

Sampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def sampler(options: GenerationOptions, vocab_size: int) -> Sampler:
    """mlx-lm's sampler for these options. It draws from the calling thread's random state."""
    # mlx-lm takes a top_p of 0 for none, and divides by temperatures too small to divide by.
    greedy = options.temperature < 1e-6 or options.top_p == 0
    return make_sampler(
        temp=0.0 if greedy else options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        # mlx-lm refuses a k that filters nothing.
        top_k=options.top_k if options.top_k < vocab_size else 0,
    )


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
    history = mx.array(list(cached_tokens[-options.penalty_context :]), dtype=mx.int32)
    if not processors or not history.size:
        return processors

    def with_history(processor: LogitsProcessor) -> LogitsProcessor:
        return lambda tokens, logits: processor(mx.concatenate([history, tokens]), logits)

    return [with_history(processor) for processor in processors]


def top_logprobs(logprobs: mx.array, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens of a [vocab_size] vector, likeliest first."""
    if count == 0:
        return ()
    count = min(count, logprobs.size)
    tokens = mx.argpartition(-logprobs, kth=count - 1)[:count]
    ids, values = np.array(tokens), np.array(logprobs[tokens].astype(mx.float32))
    order = np.argsort(-values, kind="stable")
    return tuple((int(ids[i]), float(values[i])) for i in order)
