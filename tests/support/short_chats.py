"""Short conversations with a tiny model, for tests of what is kept of them."""

from dataclasses import replace
from typing import Any

from engine import Chat, Engine, GenerationOptions

SHORT = GenerationOptions(max_tokens=8)


def of_digits(engine: Engine, options: GenerationOptions) -> GenerationOptions:
    """Options for answers whose text encodes to the very tokens that a random model drew."""
    return replace(options, logit_bias=dict.fromkeys(engine.tokenize("0123456789"), 80.0))


def talk(engine: Engine, turns: int = 2, **options: Any) -> Chat:
    chat = engine.chat(options=GenerationOptions(max_tokens=8, **options))
    for i in range(turns):
        chat.send(f"Question {i}, about rivers?").result()
    return chat
