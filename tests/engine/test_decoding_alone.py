"""Answers that are made by themselves, in turns with those that are decoded together."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import tiny

from engine import Engine, GenerationOptions, Progress, Request, TextDelta, load
from engine.decoding import alone, desk, reading
from engine.memory.features import FeatureCache

ENDLESS: dict[str, Any] = {"max_tokens": 2**19, "logit_bias": {2: -100}}
QUANTIZED: dict[str, Any] = {"kv_bits": 8, "quantized_kv_start": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose KV caches can be quantized."""
    place = tmp_path_factory.mktemp("quantizable") / "model"
    return tiny.save_of_letters(7, place, head_dim=64, max_position_embeddings=2**20)


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[Engine]:
    with load(folder, parallel=2) as engine:
        yield engine


def test_a_long_prompt_lets_others_go_on(
    pair: Engine, folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "GAP", 0.0)  # chunks are short, however quick the machine is
    prompt = "".join(random.Random(seed).choices("abcdefgh ", k=700))
    asked = Request(prompt, options=GenerationOptions(max_tokens=4, **QUANTIZED))
    order: list[str] = []

    def note(event: Any) -> None:
        if isinstance(event, Progress):
            order.append("chunk")

    text = pair.submit(
        Request("abc", options=GenerationOptions(**ENDLESS)),
        on_event=lambda event: order.append("text") if isinstance(event, TextDelta) else None,
    )
    tokens = pair.submit(asked, on_event=note).result(600).tokens
    text.cancel()
    assert text.result(600).finish_reason == "cancelled"  # it went on for as long
    first, last = order.index("chunk"), len(order) - order[::-1].index("chunk")
    read = order[first:last]
    assert read.count("chunk") > 8
    assert read.count("text") >= read.count("chunk") - 1
    with load(folder) as engine:
        assert engine.submit(asked).result().tokens == tokens


def test_others_go_past_one_that_waits_for_its_turn(pair: Engine) -> None:
    endless = GenerationOptions(**ENDLESS, **QUANTIZED)
    first, second = pair.generate("abc", options=endless), pair.generate("abd", options=endless)
    next(event for event in first if isinstance(event, TextDelta))
    assert pair.generate("abe", options=GenerationOptions(max_tokens=3)).result(600).tokens
    for generation in (second, first):
        generation.cancel()
        assert generation.result(600).finish_reason == "cancelled"


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_weights_are_wired_while_pictures_are_encoded(
    seeing_folder: Path, parallel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mlx-lm has it on a Mac around its loop; of several answers, until all have ended."""
    wired: list[int] = []
    seen: list[int] = []
    encode = FeatureCache.encode_all

    @contextmanager
    def watched(*_: Any) -> Iterator[None]:
        wired.append(1)
        yield
        wired.pop()

    def noted(cache: FeatureCache, pictures: Any) -> Any:
        seen.append(len(wired))
        return encode(cache, pictures)

    for module in (alone, desk):
        monkeypatch.setattr(module, "wired_limit", watched)
    monkeypatch.setattr(FeatureCache, "encode_all", noted)
    options = GenerationOptions(max_tokens=4)
    picture = Image.new("RGB", (40, 30))
    message = {"role": "user", "content": "What?", "images": [picture]}
    with load(seeing_folder, parallel=parallel) as engine:
        asked = [engine.generate([message], options=options), engine.generate("A", options=options)]
        for generation in asked:
            generation.result()
        engine._worker.call(lambda _: None).result()
        assert not wired
    assert seen
    assert set(seen) == {1}
