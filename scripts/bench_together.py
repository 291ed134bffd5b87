"""Answers made together, against mlx-lm's own `BatchGenerator` on as many texts of one length."""

import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.generate import BatchGenerator

from engine import Engine, GenerationOptions, Request, TextDelta, load
from vision_add_ons.testing import Photo

WORDS = ("the", "river", "bends", "and", "an", "old", "mill", "turns", "in", "evening", "light")


class Sizes(NamedTuple):
    """What is asked."""

    counts: tuple[int, ...]
    """Answers at once."""
    prompt: int
    """Tokens of a text's prompt; the words about a picture are a quarter of it."""
    answer: int


SMALL = Sizes((1, 4), 32, 8)
SIZES = {
    mx.DeviceType.cpu: Sizes((1, 2, 4, 8, 16), 64, 24),
    mx.DeviceType.gpu: Sizes((1, 2, 4, 8, 16), 300, 64),
}


def usual_sizes() -> Sizes:
    """Those of the device that MLX uses."""
    return SIZES[mx.default_device().type]


@dataclass
class Run:
    """Some answers, from the first request to the last token; seconds."""

    total: float
    step: float
    """The median time between two tokens of one answer."""
    first: float
    """When the median one of them had its first token."""
    last_first: float
    """When the last one had."""
    gap: float
    """The longest time between two tokens of one answer."""
    grown: int = 0
    """The most memory that was taken beside what there was before, in bytes."""


@dataclass
class Pair:
    """One round: the engine's, and what it is held against."""

    ours: Run
    theirs: Run


def run_of(started: float, stamps: Iterable[Sequence[float]], grown: int = 0) -> Run:
    """A run by the times of each answer's tokens."""
    stamps = list(stamps)
    gaps = [b - a for own in stamps for a, b in pairwise(own)]
    return Run(
        total=max(own[-1] for own in stamps) - started,
        step=statistics.median(gaps),
        first=statistics.median(own[0] for own in stamps) - started,
        last_first=max(own[0] for own in stamps) - started,
        gap=max(gaps),
        grown=grown,
    )


class Asker:
    """Draws what is asked of an engine: random texts, and pictures that nobody has seen."""

    def __init__(self, engine: Engine, sizes: Sizes, pictures: bool) -> None:
        """With `pictures`, half of the requests are about one."""
        self._engine, self._sizes, self._pictures = engine, sizes, pictures
        self._chance = random.Random(1)
        self._options = GenerationOptions(max_tokens=sizes.answer)
        kit: Any = engine._worker.kit
        kit.tokenizer._eos_token_ids = set()  # all run to their end
        self._vocab = kit.vocab_size

    def requests(self, count: int, as_ids: bool = False) -> list[Request]:
        """So many; `as_ids` gives texts as token ids, as mlx-lm's generator is given them."""
        return [self._request(i, as_ids) for i in range(count)]

    def _request(self, index: int, as_ids: bool) -> Request:
        images: list[bytes] = []
        length = self._sizes.prompt
        if self._pictures and not index % 2:
            images, length = [self._picture()], length // 4
        prompt: list[Any] = self.ids(length)
        if images or not as_ids:
            prompt = [{"role": "user", "content": self._words(length)}]
        return Request(prompt, images, self._options, client=index)

    def ids(self, count: int) -> list[int]:
        """So many random tokens, none of them special."""
        return [self._chance.randrange(self._vocab // 4, self._vocab // 2) for _ in range(count)]

    def _words(self, count: int) -> str:
        """A text of about so many tokens."""
        text = " ".join(self._chance.choices(WORDS, k=count))
        return self._engine.detokenize(self._engine.tokenize(text)[:count]).strip()

    def _picture(self) -> bytes:
        """A photograph as a file, as applications have it."""
        file = BytesIO()
        Photo(512, 384, self._chance.randrange(2**31)).image.save(file, "JPEG", quality=90)
        return file.getvalue()


class Together:
    """An engine that makes several answers at once, and mlx-lm's generator with its model."""

    def __init__(self, folder: Path, sizes: Sizes, pictures: bool, parallel: int) -> None:
        self.engine: Engine = load(folder, parallel=parallel)
        kit: Any = self.engine._worker.kit
        self.model, self.tokenizer = kit.text_model, kit.tokenizer
        self._asker = Asker(self.engine, sizes, pictures)
        self._answer = sizes.answer

    def rounds(self, count: int, rounds: int, seen: bool = True) -> Iterator[Pair]:
        """`seen` says whether the pictures were encoded before."""
        for i in range(rounds + 1):
            asked = self._asker.requests(count, as_ids=True)
            if seen:
                self._see(asked)
            ours, lengths = self._ours(asked)
            pair = Pair(ours, self._theirs(lengths))
            if i:  # the first round compiles
                yield pair

    def _see(self, asked: Sequence[Request]) -> None:
        """Encode the pictures, and keep nothing else of the requests."""
        from engine.images import load_pictures

        pictures = [picture for request in asked for picture in load_pictures(request.images)]
        rows = self.engine._worker.call(lambda memory: [*map(memory.features.encode, pictures)])
        rows.result()

    def _ours(self, asked: Sequence[Request]) -> tuple[Run, list[int]]:
        stamps: list[list[float]] = [[] for _ in asked]

        def note(own: list[float]) -> Any:
            def told(event: Any) -> None:
                if isinstance(event, TextDelta) and event.token is not None:
                    own.append(time.perf_counter())

            return told

        before = _reset_peak()
        started = time.perf_counter()
        begun = [
            self.engine.submit(request, on_event=note(own))
            for request, own in zip(asked, stamps, strict=True)
        ]
        for generation in begun:
            assert generation.result().completion_tokens == self._answer
        grown = mx.get_peak_memory() - before
        return run_of(started, stamps, grown), [len(g.prompt.tokens) for g in begun]

    def _theirs(self, lengths: Sequence[int]) -> Run:
        """On a thread of its own an array cannot be used: so on the engine's."""
        return self.engine._worker.call(lambda _: self._batch(lengths)).result()

    def _batch(self, lengths: Sequence[int]) -> Run:
        prompts = [self._asker.ids(length) for length in lengths]
        stamps: dict[int, list[float]] = {}
        before = _reset_peak()
        started = time.perf_counter()
        if len(lengths) == 1:
            own = stamps[0] = []
            prompt = mx.array(prompts[0])
            for _ in stream_generate(self.model, self.tokenizer, prompt, max_tokens=self._answer):
                own.append(time.perf_counter())
        else:
            generator = BatchGenerator(self.model, max_tokens=self._answer)
            generator.insert(prompts)
            while responses := generator.next_generated():
                now = time.perf_counter()
                for response in responses:
                    stamps.setdefault(response.uid, []).append(now)
            generator.close()
        return run_of(started, stamps.values(), mx.get_peak_memory() - before)

    def close(self) -> None:
        self.engine.close()


def _reset_peak() -> int:
    """Begin to look for the most memory; how much is taken now."""
    mx.reset_peak_memory()
    return mx.get_active_memory()


Figure = tuple[str, list[float], float, str, dict[str, Any]]
"""A name, mlx-lm's times over ours, how much at least they should be, a line, and all figures."""


def lone(folder: Path, rounds: int, sizes: Sizes | None = None) -> Iterator[Figure]:
    """One answer at a time, of engines that make one and several, against `stream_generate`."""
    sizes = sizes or usual_sizes()
    for parallel in (1, max(sizes.counts)):
        both = Together(folder, sizes, False, parallel)
        pairs = list(both.rounds(1, rounds))
        both.close()
        for figure in ("step", "total"):
            yield row(f"alone, parallel={parallel}: {figure}", pairs, figure, 0.99)


def figures(texts: Path, seeing: Path, rounds: int, sizes: Sizes | None = None) -> Iterator[Figure]:
    """Several answers at once: texts, and half with pictures that were encoded before, or not.

    The latter if the checkpoint in `seeing` has eyes.
    """
    sizes = sizes or usual_sizes()
    for what, folder, kinds in (
        ("texts", texts, (True,)),
        ("half with pictures", seeing, (True, False)),
    ):
        pictures = len(kinds) > 1
        both = Together(folder, sizes, pictures, max(sizes.counts))
        if pictures and both.engine.report.add_on is None:
            kinds = ()
        for seen, count in product(kinds, sizes.counts):
            told = f"{count} {what}" + ("" if seen else ", new")
            pairs = list(both.rounds(count, rounds, seen))
            step = 0.99 if count == 1 else 0.95
            yield row(f"{told}: step", pairs, "step", step)
            yield row(f"{told}: total", pairs, "total", 0.90 if pictures else step)
        both.close()


def row(name: str, pairs: Sequence[Pair], figure: str, bar: float) -> Figure:
    """What was found of one figure of several runs."""

    def median(side: str, of: str) -> float:
        return statistics.median(getattr(getattr(pair, side), of) for pair in pairs)

    sides = {
        side: {of: median(side, of) for of in vars(pairs[0].ours)} for side in ("ours", "theirs")
    }
    a, b = sides["ours"], sides["theirs"]
    a["gap"], b["gap"] = (max(getattr(p, s).gap for p in pairs) for s in sides)
    detail = f"{a[figure] * 1000:.1f} ms against {b[figure] * 1000:.1f}"
    if figure == "total":
        detail += (
            f"; first tokens {a['first']:.3f} s, all {a['last_first']:.3f}, against "
            f"{b['first']:.3f} and {b['last_first']:.3f}; longest gap {a['gap'] * 1000:.0f} ms "
            f"against {b['gap'] * 1000:.0f}; memory +{a['grown'] / 1e6:.0f} MB against "
            f"+{b['grown'] / 1e6:.0f}"
        )
    ratios = [getattr(pair.theirs, figure) / getattr(pair.ours, figure) for pair in pairs]
    return name, ratios, bar, detail, sides
