"""What the prompt cache costs and saves: conversations with a picture, and the search itself."""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import Engine, GenerationOptions, TextDelta, load
from engine.memory.budget import Budget
from engine.memory.disk_cache import DiskCache
from engine.memory.disk_writer import DiskWriter
from engine.memory.prompt_cache import PromptCache, Start
from engine.prompts.builder import Prompt

HISTORY = 2000
# Without the tokens that end an answer, which the demo model has first.
SHORT = GenerationOptions(max_tokens=4, logit_bias=dict.fromkeys(range(3), -100.0))


def seeing_follow_ups(demo: Path, rounds: int) -> Iterator[dict[str, float]]:
    """Seconds to the first token of a follow-up, with a picture in the history and without.

    Both histories are of equal length, and so are the questions. `cold` is the one with the
    picture on an engine that keeps nothing. The eyes are random: they see nothing, at full cost.
    """
    write_seeing, photo = _eyes()
    with tempfile.TemporaryDirectory() as directory:
        folder = write_seeing(Path(directory) / "seeing", demo, 1)
        with load(folder) as engine, load(folder, cache_bytes=0) as forgetful:
            word = engine.tokenize(" river")
            seen: list[int] = word * HISTORY
            rows = engine.generate(word, images=[photo], options=SHORT).prompt
            plain = word * (HISTORY + len(rows.tokens) - 1)
            _first_token(engine, seen, [photo])
            _first_token(engine, plain, [])
            for i in range(rounds):
                question = engine.tokenize(f" bends in the evening light ({i})")
                seen, plain = seen + question, plain + question
                with_picture, encoded = _first_token(engine, seen, [photo])
                without, _ = _first_token(engine, plain, [])
                cold = _first_token(forgetful, seen, [photo])[0] if i < 2 else float("nan")
                yield {
                    "picture": with_picture,
                    "text": without,
                    "cold": cold,
                    "encoded": encoded,
                }


def _first_token(engine: Engine, tokens: list[int], images: list[Any]) -> tuple[float, int]:
    started = time.perf_counter()
    generation = engine.generate(tokens, images=images, options=SHORT)
    return _seconds(started, generation), generation.result().images_encoded


def restored(demo: Path, rounds: int) -> Iterator[dict[str, float]]:
    """Seconds to the first token of a follow-up to a saved conversation, and of the same one cold.

    It has a picture and 2,000 tokens. `restored` begins with `Engine.chat(restore=)`.
    """
    write_seeing, photo = _eyes()
    with tempfile.TemporaryDirectory() as directory:
        folder, saved = Path(directory) / "seeing", Path(directory) / "talk"
        write_seeing(folder, demo, 1)
        with load(folder) as engine:
            chat = engine.chat(options=SHORT)
            words = " river" * (HISTORY - 8)
            chat.send(words, images=[photo]).result()
            nbytes = chat.save(saved).result()
        with load(folder, cache_bytes=0) as engine, load(folder, cache_bytes=0) as forgetful:
            for i in range(rounds):
                question = f"What bends in the evening light ({i})?"
                started = time.perf_counter()
                generation = engine.chat(options=SHORT, restore=saved).send(question)
                seconds = _seconds(started, generation)
                end = generation.result()
                assert end.disk_tokens > HISTORY
                messages = [*chat.messages, {"role": "user", "content": question}]
                started = time.perf_counter()
                cold = _seconds(started, forgetful.generate(messages, options=SHORT))
                yield {"restored": seconds, "cold": cold, "bytes": nbytes}


def _eyes() -> tuple[Any, Any]:
    """What writes a checkpoint that sees, and a picture for it."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from support.moxin_checkpoint import write_seeing

    from vision_add_ons.testing import Photo

    return write_seeing, Photo(320, 240, 1).image


def _seconds(started: float, generation: Any) -> float:
    seconds = next(time.perf_counter() - started for e in generation if isinstance(e, TextDelta))
    generation.result()
    return seconds


def lookups(rounds: int) -> dict[tuple[int, int], list[float]]:
    """Seconds to find a prompt of 2,000 tokens among 1 and 1,000 conversations, and of 8,000."""
    chance = random.Random(1)
    found: dict[tuple[int, int], list[float]] = {}
    cases = []
    for tokens, count in ((HISTORY, 1), (HISTORY, 1000), (4 * HISTORY, 1000)):
        start = [chance.randrange(50_000) for _ in range(tokens // 4)]
        cache = PromptCache(Budget(1), DiskCache(None, 0, "", 0, DiskWriter()))
        for _ in range(count):
            key = start + [chance.randrange(50_000) for _ in range(tokens - len(start))]
            cache.put(key, [], None, Start(None, 0, None))
        prompt = Prompt([*key[:-1], 1, 2, 3])
        _ = prompt.key
        cases.append((found.setdefault((tokens, count), []), cache, prompt, tokens))
    for _ in range(rounds):
        for seconds, cache, prompt, tokens in cases:
            started = time.perf_counter()
            for _ in range(20):
                entry, length = cache._find(prompt, None, None)
            seconds.append((time.perf_counter() - started) / 20)
            assert entry is not None
            assert length == tokens - 1
    return found
