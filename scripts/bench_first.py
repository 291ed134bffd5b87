"""The first token of a follow-up, against mlx-lm alone with a cache of its own of the same history.

    python scripts/bench.py first [--model FOLDER]

The KV cache of the history is made up, since no time depends on what is in it: so histories may be
longer than what a machine can read in a reasonable time. All that follows is computed.

A back end may prepare its kernels anew for each length of a prompt (some 75 ms with CUDA), and
whoever runs a length first pays for it. A real follow-up always does; so both sides do, each with
lengths of its own: mlx-lm runs one or two tokens more than ours, in turns.
"""

import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.models.cache import KVCache, make_prompt_cache, trim_prompt_cache

from engine import Chat, Engine, Finished, GenerationOptions, Progress, TextDelta, load
from engine.memory.prompt_cache import Start
from engine.memory.prompt_index import common_prefix
from engine.prompts.messages import Message
from engine.prompts.text_encoder import TextEncoder

HISTORIES = (2_000, 8_000, 32_000)
BAR = 1.05
"""Our time over mlx-lm's, at most."""
NEW = 50
"""Tokens of a question, with what the template puts around it."""
ANSWER = 4
QUESTION_WORDS, ANSWER_WORDS = 150, 450
"""Of each turn of the history."""
WORDS = ("the", "river", "bends", "and", "an", "old", "mill", "turns", "in", "evening", "light")
OPTIONS = GenerationOptions(max_tokens=ANSWER)


@dataclass
class Parts:
    """Where the time until one first token went, in seconds, seen from the engine's thread."""

    prompt: float
    """Until the engine's thread had the prompt: template, tokens, key, and the way there."""
    start: float
    """Until the first forward pass: what the cache has is found and taken."""
    chunk: float
    """The new tokens but the last: the first synchronisation."""
    last: float
    """The last of them, and the token that is drawn after it."""


@dataclass
class Round:
    """One follow-up, in seconds: `ours` as whoever iterates sees it, `theirs` as mlx-lm's loop."""

    ours: float
    theirs: float
    new: int
    """Tokens that both ran."""
    parts: Parts | None = None
    """Of another follow-up of ours, told by callbacks, and of mlx-lm's."""
    their_parts: Parts | None = None


class Noting:
    """An engine whose answers note on its own thread when their events come."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.events: list[tuple[float, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: Any, **given: Any) -> Any:
        self.events = events = []

        def note(event: Any) -> None:
            events.append((time.perf_counter(), event))

        return self._engine.submit(request, on_event=note, **given)


class FollowUps:
    """A conversation with a history of some length, and mlx-lm's cache of the same."""

    def __init__(self, engine: Engine, tokens: int, seed: int = 1) -> None:
        self.engine, self._chance = engine, random.Random(seed)
        self._kit: Any = engine._worker.kit
        self._kit.tokenizer._eos_token_ids = set()  # answers run to their end
        self.chat: Chat = engine.chat(options=OPTIONS)
        self.chat._messages += self._history(tokens)
        self.held, self._cache = self._fill()

    def _history(self, tokens: int) -> list[Message]:
        encode = TextEncoder(self._kit.tokenizer).encode
        messages: list[Message] = []
        while tokens > 0:
            asked = self._said(min(QUESTION_WORDS, tokens // 2 + 1))
            ids = tuple(encode(self._said(min(ANSWER_WORDS, tokens // 2 + 1))))[:tokens]
            tokens -= len(encode(asked)) + len(ids)
            text = self._kit.tokenizer.decode(list(ids))
            messages += [Message("user", asked), Message("assistant", text, ids)]
        return messages

    def _said(self, words: int) -> str:
        return " ".join(self._chance.choices(WORDS, k=words))

    def question(self) -> str:
        """A question that no other one shares a start with, of about `NEW` tokens."""
        words = self._said(NEW).split()
        while len(words) > 2 and len(self.engine.tokenize(" ".join(words))) > NEW - 10:
            words = words[: len(words) * 9 // 10]
        return " ".join([*words, str(self._chance.randrange(1000))])

    def _fill(self) -> tuple[int, list[Any]]:
        """Have the engine hold the history for its chat, and mlx-lm a cache as long."""
        asked = [
            self.engine._prompts.build([*self.chat.messages, Message("user", first)])  # type: ignore[union-attr]
            for first in ("A?", "B?")
        ]
        key = asked[0].key[: common_prefix(asked[0].key, asked[1].key)]

        def fill(memory: Any) -> list[Any]:
            start = Start(None, 0, self.chat._owner, asked=len(key))
            memory.prompts.put(key, self._made_up(len(key)), OPTIONS.kv_variant, start)
            return self._made_up(len(key))

        return len(key), self.engine._worker.call(fill).result()

    def _made_up(self, length: int) -> list[Any]:
        """A KV cache of so many tokens. Each layer's arrays are as the decoder's own would be."""
        kv = make_prompt_cache(self._kit.text_model)
        self._kit.text_model(mx.array([[1]]), cache=kv)
        made = []
        for cache in kv:
            assert type(cache) is KVCache, "only decoders with plain KV caches are measured"
            parts = [x[..., :1, :] for x in (cache.keys, cache.values)]
            shapes = [(*x.shape[:2], length, x.shape[3]) for x in parts]
            numbers = [
                mx.random.normal(s, dtype=x.dtype) for s, x in zip(shapes, parts, strict=True)
            ]
            made.append(KVCache())
            made[-1].update_and_fetch(*numbers)
            mx.eval(made[-1].state)
        return made

    def rounds(self, count: int) -> Iterator[Round]:
        """So many follow-ups of both, in turns; the first, that compiles, left out."""
        for i in range(count + 1):
            seconds, new, cached = self._ours()
            theirs, _ = self._theirs(_other(new, i), cached)
            found = Round(seconds, theirs, len(new))
            found.parts, new, cached = self._noted()
            found.their_parts = self._theirs(_other(new, i), cached)[1]
            if i:
                yield found

    def _ours(self) -> tuple[float, list[int], int]:
        question = self.question()
        gc.collect()
        started = time.perf_counter()
        generation = self.chat.send(question)
        seconds = next(
            time.perf_counter() - started for e in generation if isinstance(e, TextDelta)
        )
        return seconds, *self._ran(generation)

    def _ran(self, generation: Any) -> tuple[list[int], int]:
        """The new tokens, and how many before them were cached."""
        end: Finished = generation.result()
        assert end.cached_tokens >= self.held, "the history was not cached"
        return list(generation.prompt.tokens[end.cached_tokens :]), end.cached_tokens

    def _noted(self) -> tuple[Parts, list[int], int]:
        question, noting = self.question(), Noting(self.engine)
        self.chat._engine = noting  # type: ignore[assignment]
        gc.collect()
        started = time.perf_counter()
        generation = self.chat.send(question)
        new, cached = self._ran(generation)
        self.chat._engine = self.engine
        end = generation.result()
        progress = [at for at, e in noting.events if isinstance(e, Progress)]
        first = next(at for at, e in noting.events if isinstance(e, TextDelta))
        begun = generation.submitted + end.queue_seconds
        parts = Parts(
            begun - started, progress[0] - begun, progress[1] - progress[0], first - progress[1]
        )
        return parts, new, cached

    def _theirs(self, new: Sequence[int], cached: int) -> tuple[float, Parts]:
        """On a thread of its own an array cannot be used: so on the engine's."""
        return self.engine._worker.call(lambda _: self._alone(new, cached)).result()

    def _alone(self, new: Sequence[int], cached: int) -> tuple[float, Parts]:
        over = self._cache[0].offset - cached
        assert over >= 0, "mlx-lm's cache holds less than the engine's"
        trim_prompt_cache(self._cache, over)
        gc.collect()
        progress: list[float] = []
        started = time.perf_counter()
        responses = stream_generate(
            self._kit.text_model,
            self._kit.tokenizer,
            mx.array(new),
            max_tokens=ANSWER,
            prompt_cache=self._cache,
            prompt_progress_callback=lambda *_: progress.append(time.perf_counter()),
        )
        next(iter(responses))
        first = time.perf_counter()
        for _ in responses:
            pass
        parts = Parts(0, progress[0] - started, progress[1] - progress[0], first - progress[1])
        return first - started, parts


def _other(new: Sequence[int], turn: int) -> list[int]:
    """The tokens with one or two more before them, in turns."""
    return [*new[: 1 + turn % 2], *new]


@contextmanager
def long_enough(folder: Path, tokens: int) -> Iterator[Path]:
    """The checkpoint with a context of at least so many tokens: its files, and another config."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    if text.get("max_position_embeddings", tokens) >= tokens:
        yield folder
        return
    text["max_position_embeddings"] = tokens
    with tempfile.TemporaryDirectory() as directory:
        longer = Path(directory) / folder.name
        longer.mkdir()
        for file in folder.iterdir():
            (longer / file.name).symlink_to(file.resolve())
        (longer / "config.json").unlink()
        (longer / "config.json").write_text(json.dumps(config))
        yield longer


def figures(
    folder: Path, rounds: int, histories: Sequence[int] = HISTORIES
) -> Iterator[tuple[str, list[float], str, dict[str, Any]]]:
    """A name, our time over mlx-lm's of each round, a line and all figures, for each history."""
    with long_enough(folder, max(histories) + 4096) as longer:
        for parallel in (1, 8):
            with load(longer, parallel=parallel) as engine:
                for tokens in histories:
                    found = list(FollowUps(engine, tokens).rounds(rounds))
                    ratios = [r.ours / r.theirs for r in found]
                    name = f"first token after {tokens:,}, parallel={parallel}"
                    yield name, ratios, *_told(found)


def _told(found: Sequence[Round]) -> tuple[str, dict[str, Any]]:
    ours, theirs = _medians([r.parts for r in found]), _medians([r.their_parts for r in found])
    a, b = ([getattr(r, side) * 1000 for r in found] for side in ("ours", "theirs"))
    detail = (
        f"{found[0].new} new tokens: {statistics.median(a):.2f} ms against "
        f"{statistics.median(b):.2f}; prompt {ours['prompt']:.2f}, cache {ours['start']:.2f} / "
        f"{theirs['start']:.2f}, chunk {ours['chunk']:.2f} / {theirs['chunk']:.2f}, last "
        f"{ours['last']:.2f} / {theirs['last']:.2f}"
    )
    more = {"new": [r.new for r in found], "ours_ms": a, "theirs_ms": b}
    return detail, {**more, "parts_ms": ours, "their_parts_ms": theirs}


def _medians(parts: Sequence[Any]) -> dict[str, float]:
    """In milliseconds."""
    names = [f.name for f in fields(Parts)]
    return {n: statistics.median(getattr(p, n) for p in parts) * 1000 for n in names}
