"""A question after a long conversation: its first token, warm and cold, and the memory it takes."""

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.models.cache import make_prompt_cache

from engine import Engine, GenerationOptions, TextDelta, load

HISTORY = 2000
"""Tokens of conversation before a follow-up."""


class Asked(NamedTuple):
    """One question to a chat."""

    tokens: list[int]
    """The whole prompt."""
    new: list[int]
    """Its part that was run."""
    seconds: float
    """To the first token."""
    growth: int
    """The most memory that was taken beside what there was before, in bytes."""


class FollowUp(NamedTuple):
    """One question, and mlx-lm's answer to the same; times are seconds to the first token."""

    warm: float
    alone: float
    """mlx-lm's, with a cache of its own."""
    cold: float
    """mlx-lm's, without one."""
    growth: int
    held: int
    """Bytes of the history's KV cache."""


def follow_ups(engine: Engine, model: Any, tokenizer: Any, rounds: int) -> Iterator[FollowUp]:
    """Questions after `HISTORY` tokens of conversation."""

    def first_token(tokens: list[int], cache: list[Any]) -> float:
        """Of mlx-lm; the cache is left as the engine's is."""
        started = time.perf_counter()
        prompt = mx.array(tokens)
        responses = stream_generate(model, tokenizer, prompt, max_tokens=4, prompt_cache=cache)
        next(iter(responses))
        seconds = time.perf_counter() - started
        for _ in responses:
            pass
        return seconds

    chat = engine.chat(options=GenerationOptions(max_tokens=4))
    text = "The river bends, and the old mill turns slowly in the evening light. "
    chat.send(text * (HISTORY // len(engine.tokenize(text)) + 1)).result()
    cache = make_prompt_cache(model)
    for i in range(rounds + 1):
        asked = ask(chat, f"What turns in the light? ({i})")
        alone = first_token(asked.new if i else asked.tokens, cache)
        if i:  # the first round fills mlx-lm's own cache; it only warms up
            held = sum(c.nbytes for c in cache)
            cold = first_token(asked.tokens, make_prompt_cache(model))
            yield FollowUp(asked.seconds, alone, cold, asked.growth, held)


def peaks(folder: Path, rounds: int) -> Iterator[tuple[int, int, int]]:
    """Questions after twice as many tokens: bytes that the cache held and that were taken beside,
    and the prompt's tokens."""
    with load(folder) as engine:
        chat = engine.chat(options=GenerationOptions(max_tokens=4))
        chat.send(" river" * 2 * HISTORY).result()
        for i in range(rounds):
            held = engine.cache_stats()["bytes"]
            asked = ask(chat, f"What turns in the light? ({i})")
            yield held, asked.growth, len(asked.tokens)


def ask(chat: Any, question: str) -> Asked:
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    started = time.perf_counter()
    generation = chat.send(question)
    seconds = next(time.perf_counter() - started for e in generation if isinstance(e, TextDelta))
    end = generation.result()
    growth = mx.get_peak_memory() - before
    tokens = list(generation.prompt.tokens)
    return Asked(tokens, tokens[end.cached_tokens :], seconds, growth)
