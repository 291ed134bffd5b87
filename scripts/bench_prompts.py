"""What a follow-up's prompt costs before anything is computed: template, tokenizer, bookkeeping."""

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from engine.fidelity import default_texts
from engine.prompts.builder import PromptBuilder
from engine.prompts.messages import Message
from model_kit.kit import load_model_kit

BARS = {8_000: 2.0, 32_000: 4.0, 127_000: 10.0}
"""Tokens of history, and the milliseconds that a follow-up's prompt may take."""
QUESTION, ANSWER, LATEST = 100, 700, 60
"""Words of the history's questions and answers, and of the latest answer and question."""


class FollowUps(NamedTuple):
    """What prompts after one history took, in milliseconds."""

    tokens: int
    """Of the history."""
    messages: int
    ours: list[float]
    """Of each follow-up."""
    whole: list[float]
    """What mlx-lm's tokenizer alone took, for the same messages."""


def follow_ups(folder: Path, rounds: int) -> Iterator[FollowUps]:
    """Each round asks another question about the same history, after another answer."""
    kit = load_model_kit(folder)
    words = " ".join(default_texts()).split()
    rng = random.Random(1)

    def said(role: str, count: int) -> Message:
        text = " ".join(rng.choices(words, k=count))
        ids = tuple(kit.tokenizer.encode(text, add_special_tokens=False))
        return Message(role, text, ids if role == "assistant" else ())

    for size in BARS:
        builder = PromptBuilder(kit)
        messages = [Message("system", "Be brief.")]
        tokens = 0
        while tokens < size:
            messages += [said("user", QUESTION), said("assistant", ANSWER)]
            tokens += len(kit.tokenizer.encode(messages[-2].text)) + len(messages[-1].tokens)
        messages.append(said("user", LATEST))
        times, whole = [], []
        for _ in range(rounds + 1):
            builder.build(messages)
            asked = [*messages, said("assistant", LATEST), said("user", LATEST)]
            took, ours = _built(builder, asked)
            times.append(took)
            dictionaries = [{"role": m.role, "content": m.text} for m in asked]
            started = time.perf_counter()
            kit.tokenizer.apply_chat_template(dictionaries, add_generation_prompt=True)
            whole.append((time.perf_counter() - started) * 1000)
        assert ours == PromptBuilder(kit).build(asked).tokens
        # The first round finds the template's form, and learns its turns.
        yield FollowUps(tokens, len(asked), times[1:], whole[1:])


def _built(builder: PromptBuilder, messages: list[Message]) -> tuple[float, Sequence[int]]:
    started = time.perf_counter()
    prompt = builder.build(messages)
    _ = prompt.key
    return (time.perf_counter() - started) * 1000, prompt.tokens
