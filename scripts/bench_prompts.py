"""What a follow-up's prompt costs before anything is computed: template, tokenizer, bookkeeping."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from engine.fidelity import default_texts
from engine.prompts.builder import PromptBuilder
from engine.prompts.messages import Message
from model_kit.kit import load_model_kit

BARS = {8_000: 2.0, 32_000: 4.0, 127_000: 10.0}
"""Tokens of history, and the milliseconds that a follow-up's prompt may take."""
QUESTION, ANSWER, LATEST = 100, 700, 60
"""Words of the history's questions and answers, and of the latest answer and question."""


def follow_ups(folder: Path, rounds: int) -> Iterator[tuple[int, int, list[float], float]]:
    """Tokens of history, its messages, milliseconds of each follow-up's prompt, and those of the
    first."""
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
        first, _ = _built(builder, messages)
        times = []
        for _ in range(rounds + 1):
            messages += [said("assistant", LATEST), said("user", LATEST)]
            took, ours = _built(builder, messages)
            times.append(took)
        assert ours == _built(PromptBuilder(kit), messages)[1]
        yield tokens, len(messages), times[1:], first  # the first round learns the template's turns


def _built(builder: PromptBuilder, messages: list[Message]) -> tuple[float, list[int]]:
    started = time.perf_counter()
    prompt = builder.build(messages)
    _ = prompt.key, prompt.fits(2**31)
    return (time.perf_counter() - started) * 1000, prompt.tokens
