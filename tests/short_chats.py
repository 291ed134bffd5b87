"""Short conversations with a tiny model, for tests of what is kept of them."""

from typing import Any

from engine import Chat, Engine, GenerationOptions

SHORT = GenerationOptions(max_tokens=8)


def talk(engine: Engine, turns: int = 2, **options: Any) -> Chat:
    chat = engine.chat(options=GenerationOptions(max_tokens=8, **options))
    for i in range(turns):
        chat.send(f"Question {i}, about rivers?").result()
    return chat
