"""What the prompt cache costs and saves: conversations with a picture, and the search itself."""

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import Engine, GenerationOptions, TextDelta, load
from engine.budget import Budget
from engine.disk_cache import DiskCache
from engine.prompt import Prompt
from engine.prompt_cache import PromptCache, Start

HISTORY = 2000
SHORT = GenerationOptions(max_tokens=4)


def seeing_follow_ups(demo: Path, rounds: int) -> Iterator[dict[str, float]]:
    """Seconds to the first token of a follow-up, with a picture in the history and without.

    Both histories are of equal length, and so are the questions. `cold` is the one with the
    picture on an engine that keeps nothing. The eyes are random: they see nothing, at full cost.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from parity.moxin_checkpoint import PATCHES, Photo, write_seeing

    with tempfile.TemporaryDirectory() as directory:
        folder = write_seeing(Path(directory) / "seeing", demo, 1)
        with load(folder) as engine, load(folder, cache_bytes=0) as forgetful:
            word = engine.tokenize(" river")
            seen: list[int] = word * HISTORY
            plain = word * (HISTORY + PATCHES)
            photo = Photo(320, 240, 1).image
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
    seconds = next(time.perf_counter() - started for e in generation if isinstance(e, TextDelta))
    return seconds, generation.result().images_encoded


def lookups(rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to find a prompt of 2,000 tokens among 1 and among 1,000 conversations."""
    chance = random.Random(1)
    start = [chance.randrange(50_000) for _ in range(HISTORY // 4)]
    keys = [
        start + [chance.randrange(50_000) for _ in range(HISTORY - len(start))] for _ in range(1000)
    ]
    found: tuple[list[float], list[float]] = ([], [])
    caches = []
    for stored in (keys[:1], keys):
        cache = PromptCache(Budget(1), DiskCache(None, 0, "", 0))
        for key in stored:
            cache.put(key, [], None, Start(None, 0, None))
        caches.append(cache)
    prompt = Prompt([*keys[0][:-1], 1, 2, 3])
    _ = prompt.key
    for _ in range(rounds):
        for cache, seconds in zip(caches, found, strict=True):
            started = time.perf_counter()
            for _ in range(20):
                entry, length = cache._find(prompt, None, None)
            seconds.append((time.perf_counter() - started) / 20)
            assert entry is not None
            assert length == HISTORY - 1
    return found
