"""Requests of random owners, each answered as by an engine that keeps nothing."""

import random
from collections.abc import Sequence

from engine import Engine, Finished, GenerationOptions, Progress, Request
from support.at_once import all_at_once, cancel_at

OWNERS = ["Ada", "Bob", None]


def asked(
    warm: Engine, cold: Engine, prompt: str | Sequence[int], rng: random.Random
) -> Finished | None:
    """The answer of `warm`, which is that of `cold`; None for one that was cancelled on the way."""
    options = GenerationOptions(max_tokens=rng.randrange(1, 6), prefill_step_size=13)
    request = Request(prompt, options=options, owner=rng.choice(OWNERS))
    if rng.random() < 0.2:
        with all_at_once(warm):
            generation = warm.submit(request)
            cancel_at(generation, lambda event: isinstance(event, Progress) and event.processed)
        generation.result()
        return None
    end = warm.submit(request).result()
    assert end.tokens == cold.generate(prompt, options=options).result().tokens
    return end
