"""Whether a decoder's answers can be decoded together: tried once, when the model is there."""

import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
from mlx_lm.generate import generation_stream

from engine.decoding.lane import LaneCache
from engine.decoding.prefill import prefill_together

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

log = logging.getLogger("sightline")

T = TypeVar("T")

ALIKE = 0.05
"""How far the logits of a row may be from those that it has alone, for the rounding of bfloat16."""


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
