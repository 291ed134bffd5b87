"""Answers that are guessed ahead against the same ones without, and against what acceptance allows.

    python scripts/bench.py drafts [--model FOLDER]

How often a draft is right depends on models and texts, so it is set here: the model's own answer is
known from a run without drafts, and what drafts it is right at each token by a given chance. Beside
that it runs a real small decoder, whose answers are thrown away, so that it takes its time. What
such a chance allows at most follows from the time of bare forward passes of so many tokens.
"""

import json
import random
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from bench_together import Figure

from engine import Engine, Finished, GenerationOptions, TextDelta, load
from engine.drafting.drafting import Drafting
from engine.drafting.drafts import words
from engine.drafting.model import DraftModel
from engine.drafting.pace import MOST
from engine.drafting.step_times import StepTimes

RATES = (0.6, 0.75, 0.9)
ANSWER = 96
"""Tokens of an answer."""

CODE = '''def area(width, height):
    """The area of a rectangle."""
    return width * height


def volume(width, height, depth):
    """The volume of a box."""
    return area(width, height) * depth
'''
EDIT = f"Repeat this code, with `area` renamed to `surface`, and nothing else:\n\n{CODE}"
STORY = "Tell me a long story about a river, a mill and an old man who counts the stars."


class Set:
    """Right by a given chance. A `Drafter`, with the time of a real one."""

    def __init__(
        self, answer: Sequence[int], prompt: int, rate: float, seed: int, small: DraftModel
    ) -> None:
        """`prompt` is how many tokens come before the `answer`."""
        self._answer, self._prompt, self._rate, self._small = answer, prompt, rate, small
        self._chance = random.Random(seed)

    def ready(self, history: Sequence[int]) -> bool:
        """Its guesses are made up."""
        return self._small.ready(history)

    def draft(self, history: Sequence[int], last: mx.array, count: int) -> mx.array | None:
        """The answer's own tokens up to the first that is wrong, and others."""
        computed = self._small.draft(history, last, count)
        done = len(history) - self._prompt + 1
        guessed = [*self._answer[done : done + count]]
        guessed += [0] * (count - len(guessed))
        for i in range(count):
            if self._chance.random() >= self._rate:
                guessed[i:] = [(token + 1) % 100 for token in guessed[i:]]
                break
        return mx.depends(mx.array(guessed, dtype=last.dtype), computed)

    def close(self, history: Sequence[int]) -> None:
        """Its caches are of no use later."""


class SetDrafts:
    """What takes the place of `Drafts.of` in an engine."""

    def __init__(self, small: Any, memory: Any) -> None:
        self._small, self._prompts = small, memory.of_draft(small)
        self._times = StepTimes()
        self.answer: Sequence[int] = ()
        self.rate, self.seed = 0.0, 0

    def of(self, answer: Any) -> Drafting | None:
        """None where a request asks for none."""
        if answer.options.draft_tokens == 0:
            return None
        self.seed += 1
        known = self._small.vocab_size
        model = DraftModel(self._small, self._prompts, known, None, lambda: True)
        prompt = words(answer.prompt)
        drafter = Set(self.answer, len(prompt), self.rate, self.seed, model)
        return Drafting(drafter, prompt, self._times, answer.options.draft_tokens)


def answered(engine: Engine, prompt: Any, **options: Any) -> tuple[float, Finished]:
    """Tokens a second behind the first, seen from outside, and the answer."""
    first = last = 0.0
    generation = engine.generate(prompt, options=GenerationOptions(max_tokens=ANSWER, **options))
    for event in generation:
        if isinstance(event, TextDelta) and event.token is not None:
            last = time.perf_counter()
            first = first or last
    end = generation.result()
    return (end.completion_tokens - 1) / (last - first), end


def figures(folder: Path, rounds: int) -> Iterator[Figure]:
    """Of a checkpoint, which drafts for itself where a chance of being right is set."""
    yield from lookups(folder, rounds)
    with tempfile.TemporaryDirectory() as directory:
        yield from rates(folder, first_layers(folder, Path(directory) / "small"), rounds)


def first_layers(folder: Path, small: Path) -> Path:
    """A tenth of a checkpoint's decoder, its first layers, written to `small`."""
    small.mkdir()
    for file in folder.iterdir():
        if file.suffix in (".json", ".model", ".jinja") and "index" not in file.name:
            shutil.copy(file, small / file.name)
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"] = max(1, config["num_hidden_layers"] // 10)
    (small / "config.json").write_text(json.dumps(config))
    kept = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, array in mx.load(str(file)).items():
            layer = re.search(r"\.layers\.(\d+)\.", name)
            if layer is None or int(layer[1]) < layers:
                kept[name] = array
    mx.save_safetensors(str(small / "model.safetensors"), kept)
    return small


def _figure(name: str, ours: list[float], theirs: list[float], bar: float, detail: str) -> Figure:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    speeds = f"{statistics.median(ours):.1f} against {statistics.median(theirs):.1f} tokens/s"
    return name, ratios, bar, f"{speeds}, {detail}", {"ours": ours, "theirs": theirs}


def lookups(folder: Path, rounds: int) -> Iterator[Figure]:
    """A text that is edited, and one that is made up."""
    with load(folder, draft="lookup") as engine:
        for name, asked, aim in (("edit", EDIT, 1.0), ("story", STORY, 0.98)):
            prompt = [{"role": "user", "content": asked}]
            ours, theirs, drafted = [], [], 0
            answered(engine, prompt, draft_tokens=0)
            for _ in range(rounds):
                theirs.append(answered(engine, prompt, draft_tokens=0)[0])
                speed, end = answered(engine, prompt)
                ours.append(speed)
                drafted = end.drafted_tokens
            detail = f"{drafted} of {end.completion_tokens} tokens looked up"
            yield _figure(f"lookup, {name}, with / without", ours, theirs, aim, detail)


def rates(folder: Path, draft: Path, rounds: int) -> Iterator[Figure]:
    """Of chances that are set, and of none: what it costs where nothing is accepted."""
    with load(folder, draft=draft) as engine:
        worker = engine._worker

        def install(memory: Any) -> SetDrafts:
            made = SetDrafts(memory.drafts._kit, memory)
            memory.drafts.of = made.of  # the desk has these drafts already
            return made

        never = {"logit_bias": dict.fromkeys(engine._ends, -100.0)}
        drafts = worker.call(install).result()
        prompt = engine.tokenize(STORY)
        speed, end = answered(engine, prompt, draft_tokens=0, **never)
        drafts.answer = end.tokens
        for rate in RATES:
            ours, theirs, drafted = [], [], 0
            for _ in range(rounds):
                drafts.rate = rate
                allowed = worker.call(lambda _, r=rate: limit(worker.kit, drafts, r)).result()
                without = answered(engine, prompt, draft_tokens=0, **never)[0]
                theirs.append(max(allowed, without))  # whichever way is the quicker one
                speed, end = answered(engine, prompt, **never)
                ours.append(speed)
                drafted = end.drafted_tokens
            detail = f"{drafted} of {end.completion_tokens} tokens drafted"
            yield _figure(f"{rate:.0%} right, engine / limit", ours, theirs, 0.9, detail)
        drafts.rate = 0.0
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(answered(engine, prompt, draft_tokens=0, **never)[0])
            ours.append(answered(engine, prompt, **never)[0])
        yield _figure("never right, with / without", ours, theirs, 0.98, "0 drafted")


def limit(kit: Any, drafts: SetDrafts, rate: float) -> float:
    """Tokens a second that a chance allows, by bare forward passes of both models."""
    each = _seconds(drafts._small, 1)
    best = 0.0
    for count in (0, 1, 2, 3, 4, 6, 8, 12, MOST):
        tokens = sum(rate**i for i in range(count + 1))
        best = max(best, tokens / (_seconds(kit, count + 1) + count * each))
    return best


def _seconds(kit: Any, tokens: int, steps: int = 6) -> float:
    """Of a forward pass of so many tokens behind a short history, each step waited for."""
    cache = kit.make_cache()
    mx.eval(kit.text_model(mx.zeros((1, 64), mx.int32), cache=cache))
    run = mx.zeros((1, tokens), mx.int32)
    took = []
    for _ in range(steps):
        started = time.perf_counter()
        mx.eval(mx.argmax(kit.text_model(run, cache=cache)[0], axis=-1))
        took.append(time.perf_counter() - started)
    return statistics.median(took)
