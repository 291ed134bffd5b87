"""Answers made together, against mlx-lm's own `BatchGenerator` on as many texts of one length."""

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.generate import BatchGenerator
from PIL import Image

from engine import Engine, GenerationOptions, Request, TextDelta, load
from model_kit.demo import demo_folder

COUNTS = (1, 2, 4, 8, 16)


@dataclass
class Run:
    """Some answers, from the first request to the last token; seconds."""

    total: float
    step: float
    """The median time between two tokens of one answer."""
    first: float
    """When the last of them had its first token."""
    gap: float
    """The longest time between two tokens of one answer."""


@dataclass
class Pair:
    """One round: the engine's and mlx-lm's."""

    answers: int
    ours: Run
    theirs: Run


def _run(started: float, stamps: Sequence[Sequence[float]]) -> Run:
    gaps = [b - a for own in stamps for a, b in pairwise(own)]
    return Run(
        total=max(own[-1] for own in stamps) - started,
        step=statistics.median(gaps),
        first=max(own[0] for own in stamps) - started,
        gap=max(gaps),
    )


class Together:
    """An engine that makes `COUNTS[-1]` answers at once, and mlx-lm's generator with its model."""

    def __init__(self, folder: Path, prompt: int, answer: int, pictures: bool = False) -> None:
        """`prompt` and `answer` are lengths in tokens; with `pictures`, half have one."""
        self.prompt, self.answer, self.pictures = prompt, answer, pictures
        self.engine: Engine = load(folder, parallel=COUNTS[-1])
        kit: Any = self.engine._worker.kit
        self.model, self.tokenizer, self.eyes = kit.text_model, kit.tokenizer, kit.add_on
        self.vocab = kit.vocab_size
        self.tokenizer._eos_token_ids = set()  # all run to their end
        self.chance = random.Random(1)

    def rounds(self, count: int, rounds: int, seen: bool = True) -> Iterator[Pair]:
        """`seen` says whether the pictures were encoded before."""
        for i in range(rounds + 1):
            asked = [self._request(j, count) for j in range(count)]
            if self.pictures and seen:
                for request in asked:
                    if request.images:
                        self.engine.submit(self._question(request.images[0])).result()
            ours, lengths = self._ours(asked)
            pair = Pair(count, ours, self._theirs(lengths))
            if i:  # the first round compiles
                yield pair

    def _words(self, count: int) -> list[int]:
        return [self.chance.randrange(100, self.vocab - 100) for _ in range(count)]

    def _request(self, index: int, count: int) -> Request:
        options = GenerationOptions(max_tokens=self.answer)
        if not self.pictures or index % 2:
            return Request(self._words(self.prompt), options=options, client=index)
        colour = tuple(self.chance.randrange(256) for _ in range(3))
        picture = Image.new("RGB", (512, 512), colour)  # type: ignore[arg-type]
        request = self._question(picture)
        return Request(request.prompt, request.images, options, client=index)

    def _question(self, picture: Any) -> Request:
        said = self.tokenizer.decode(self._words(self.prompt // 4))
        options = GenerationOptions(max_tokens=1)
        return Request([{"role": "user", "content": said}], [picture], options)

    def _ours(self, asked: Sequence[Request]) -> tuple[Run, list[int]]:
        stamps: list[list[float]] = [[] for _ in asked]

        def note(own: list[float]) -> Any:
            def told(event: Any) -> None:
                if isinstance(event, TextDelta) and event.token is not None:
                    own.append(time.perf_counter())

            return told

        started = time.perf_counter()
        begun = [
            self.engine.submit(request, on_event=note(own))
            for request, own in zip(asked, stamps, strict=True)
        ]
        for generation in begun:
            assert generation.result().completion_tokens == self.answer
        return _run(started, stamps), [len(generation.prompt.tokens) for generation in begun]

    def _theirs(self, lengths: Sequence[int]) -> Run:
        """On a thread of its own an array cannot be used: so on the engine's."""
        return self.engine._worker.call(lambda _: self._batch(lengths)).result()

    def _batch(self, lengths: Sequence[int]) -> Run:
        prompts = [self._words(length) for length in lengths]
        stamps: dict[int, list[float]] = {}
        started = time.perf_counter()
        if len(lengths) == 1:
            own = stamps[0] = []
            prompt = mx.array(prompts[0])
            for _ in stream_generate(self.model, self.tokenizer, prompt, max_tokens=self.answer):
                own.append(time.perf_counter())
            return _run(started, [own])
        generator = BatchGenerator(self.model, max_tokens=self.answer)
        generator.insert(prompts)
        while responses := generator.next_generated():
            now = time.perf_counter()
            for response in responses:
                stamps.setdefault(response.uid, []).append(now)
        generator.close()
        return _run(started, list(stamps.values()))

    def close(self) -> None:
        self.engine.close()


def figures(folder: Path, rounds: int) -> Iterator[tuple[str, list[float], float, str]]:
    """What is compared, mlx-lm's times over ours, how much at least they should be, and details."""
    for what, model, kinds in (
        ("texts", folder, (True,)),
        ("half with pictures", demo_folder(eyes=True), (True, False)),
    ):
        pictures = len(kinds) > 1
        both = Together(model, 100, 32, pictures)
        for seen, count in product(kinds, COUNTS):
            told = f"{count} {what}" + ("" if seen else ", new")
            pairs = list(both.rounds(count, rounds, seen))
            lone = 0.99 if count == 1 else 0.95
            for figure, bar in (("step", lone), ("total", 0.90 if pictures else lone)):
                ratios = [getattr(p.theirs, figure) / getattr(p.ours, figure) for p in pairs]
                yield f"{told}: {figure}", ratios, bar, _detail(pairs, figure)
        both.close()


def _detail(pairs: Sequence[Pair], figure: str) -> str:
    def median(name: str) -> tuple[float, float]:
        ours, theirs = ([getattr(run, name) for run in side] for side in _sides(pairs))
        return statistics.median(ours), statistics.median(theirs)

    (a, b), (first, theirs) = median(figure), median("first")
    gap = max(pair.ours.gap for pair in pairs)
    return (
        f"{a * 1000:.1f} ms against {b * 1000:.1f}, the last first token after {first:.2f} s "
        f"against {theirs:.2f}, the longest gap {gap:.2f} s"
    )


def _sides(pairs: Sequence[Pair]) -> tuple[list[Run], list[Run]]:
    return [pair.ours for pair in pairs], [pair.theirs for pair in pairs]
