"""Requests wait for memory, are read in smaller chunks, or are refused; what MLX holds stays below
the limit."""

import gc
import json
import math
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from PIL import Image
from support import tiny
from support.at_once import all_at_once
from support.peaks import most_taken
from support.seeds import SWEEP
from support.serving import running

from engine import (
    Engine,
    Finished,
    Generation,
    GenerationOptions,
    NotEnoughMemory,
    OptionError,
    Progress,
    Request,
    TextDelta,
    load,
)
from engine.decoding import lanes, reading
from engine.events import Event
from engine.memory.room import Room, Shape
from vision_add_ons.testing import written

MB = 2**20
SHORT = GenerationOptions(max_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model whose context does not end."""
    place = tmp_path_factory.mktemp("long") / "model"
    return tiny.save_of_letters(7, place, max_position_embeddings=2**20)


@pytest.fixture
def limited(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with as many megabytes beside all that the tests' process holds.

    A third number says how many megabytes somebody else holds there, as another engine's weights.
    """
    megabytes, parallel, *others = request.param
    held = mx.zeros(sum(others) * MB, mx.uint8)
    mx.eval(held)
    gc.collect()  # what others left, or it would go meanwhile
    weights = (folder / "model.safetensors").stat().st_size
    limit = mx.get_active_memory() + weights + int(megabytes * MB)
    with load(folder, memory_bytes=limit, cache_bytes=64 * MB, parallel=parallel) as engine:
        yield engine


def limit_of(engine: Engine) -> int:
    limit = room(engine).max_bytes
    assert limit is not None
    return limit


def room(engine: Engine) -> Any:
    memory = engine._worker.memory
    assert memory is not None
    return memory.room


def text(chance: random.Random, length: int) -> str:
    return "".join(chance.choices("abcdefgh ", k=length))


@pytest.mark.parametrize("limited", [(6, 1), (6, 4)] if SWEEP else [(6, 4)], indirect=True)
def test_sizes_around_the_limit(limited: Engine, seed: int) -> None:
    """Some are answered, some refused; never is there more than the limit."""
    chance = random.Random(seed)
    kinds = (100, 900, 1_800, 6_000, 20_000)
    lengths = chance.sample([*kinds, *kinds, *chance.choices(kinds, k=2)], 12)
    mx.reset_peak_memory()
    asked = [limited.submit(Request(text(chance, n), options=SHORT)) for n in lengths]
    outcomes = {"length": 0, "refused": 0}
    for generation in asked:
        end = last(generation)
        if end.error is None:
            outcomes[end.finish_reason] += 1
        else:
            assert isinstance(end.error, NotEnoughMemory)
            assert "shorten it" in str(end.error)
            outcomes["refused"] += 1
    assert mx.get_peak_memory() <= limit_of(limited)
    assert not room(limited)._held  # nor any answer that has ended
    assert min(outcomes.values()) > 1, outcomes
    assert limited.generate("Hello", options=SHORT).result().tokens


@pytest.mark.parametrize("limited", [(30, 4), (30, 4, 64)], indirect=True)
def test_answers_without_an_end_share_what_there_is(
    limited: Engine, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that may fill its context of a million tokens leaves room for others beside it."""
    monkeypatch.setattr("engine.memory.room.LEAST_SHARE", 64)
    chance = random.Random(seed)
    options = GenerationOptions(max_tokens=None, logit_bias={2: -100.0})
    enough, begun, limits = threading.Event(), set[int](), list[int]()

    def note(number: int, event: Event) -> None:
        if isinstance(event, TextDelta):
            begun.add(number)
        if len(begun) == 4 and not limits:
            limits.extend(answer.limit for answer in room(limited)._held)
            enough.set()

    mx.reset_peak_memory()
    prompts = [Request(text(chance, 100), options=options) for _ in range(4)]
    asked = [
        limited.submit(request, on_event=partial(note, number), cancel=enough)
        for number, request in enumerate(prompts)
    ]
    # Each began before any had ended.
    assert {generation.result().finish_reason for generation in asked} == {"cancelled"}
    assert min(limits) > 64
    assert room(limited).needs.kv(100 + max(limits), options) < 30 * MB / 2
    assert mx.get_peak_memory() <= limit_of(limited)


def test_what_is_padded_counts(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short ones that come beside a long one, in whose lane they would all be as long as it is."""
    monkeypatch.setattr(lanes, "SHARE", 1e9)  # by the weights, all would be in one lane
    chance = random.Random(seed)
    long, *short = (text(chance, n) for n in (3_000, 100, 120, 140))
    weights = (folder / "model.safetensors").stat().st_size
    options = GenerationOptions(max_tokens=900, prefill_step_size=64, logit_bias={2: -100.0})
    base = mx.get_active_memory()
    with load(folder, memory_bytes=2**40, cache_bytes=0, parallel=4) as engine:
        kv = room(engine).needs.kv(len(long) + 900, options)
        room(engine).max_bytes = limit = base + weights + kv + 12 * MB
        running = engine.generate(long, options=options)
        next(event for event in running if isinstance(event, TextDelta))
        mx.reset_peak_memory()
        for generation in [engine.generate(t, options=SHORT) for t in short]:
            assert generation.result().finish_reason == "length"
        running.cancel()
        running.result()
        assert mx.get_peak_memory() <= limit


@pytest.mark.parametrize("spare", [False, True])
def test_where_there_is_no_room_none_is_padded_or_copied_for_others(
    folder: Path, seed: int, spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    apart = [first + text(chance, n) for first, n in (("a", 999), ("b", 1_199))]
    start = "c" + text(chance, 999)
    alike = [start + first + text(chance, 99) for first in "de"]
    padded = []
    together = reading.prefill_together

    def watched(model: Any, prompts: Any, *rest: Any) -> Any:
        padded.append(len(prompts))
        return together(model, prompts, *rest)

    monkeypatch.setattr(reading, "prefill_together", watched)
    with load(folder, memory_bytes=2**40, parallel=4) as engine:
        monkeypatch.setattr(Room, "spare", property(lambda _: math.inf if spare else 0))
        for texts in apart, alike:
            with all_at_once(engine):
                asked = [engine.generate(t, options=SHORT) for t in texts]
            cached = [generation.result().cached_tokens for generation in asked]
    assert padded == ([2] if spare else [])
    assert cached == [0, 1_000 if spare else 0]


def last(generation: Generation) -> Finished:
    *_, end = generation
    assert isinstance(end, Finished)
    return end


def test_what_a_draft_holds_counts(folder: Path) -> None:
    """Beside a draft of its own size, an answer gets half as long, if it is drafted."""
    with load(folder, draft=folder) as engine:
        both = room(engine).tokens(64 * MB, GenerationOptions())
        for alone in (GenerationOptions(draft_tokens=0), GenerationOptions(kv_bits=8)):
            assert room(engine).tokens(64 * MB, alone) >= 1.9 * both


@pytest.mark.parametrize("limited", [(8, 4)], indirect=True)
def test_one_waits_for_another(limited: Engine, seed: int) -> None:
    """Both would fit alone; together they would not."""
    chance = random.Random(seed)
    options = GenerationOptions(max_tokens=8)
    tokens = room(limited).tokens(5 * MB // 2, options)
    order: list[tuple[str, str]] = []

    def note(name: str) -> Any:
        def on_event(event: Any) -> None:
            if isinstance(event, Progress) and event.processed:
                order.append((name, "read"))
            elif isinstance(event, Finished):
                order.append((name, "end"))

        return on_event

    asked = [
        limited.submit(Request(text(chance, tokens), options=options), on_event=note(name))
        for name in "ab"
    ]
    assert [generation.result().finish_reason for generation in asked] == ["length", "length"]
    assert order.index(("a", "end")) < order.index(("b", "read"))


@pytest.mark.parametrize("limited", [(8, 4)], indirect=True)
def test_one_that_waits_can_be_cancelled(limited: Engine, seed: int) -> None:
    chance = random.Random(seed)
    options = GenerationOptions(max_tokens=8)
    tokens = room(limited).tokens(5 * MB // 2, options)
    asked: list[Generation] = []

    def leave(event: Event) -> None:
        if isinstance(event, TextDelta):
            asked[1].cancel()

    with all_at_once(limited):
        for on_event in (leave, None, None):
            request = Request(text(chance, tokens), options=options)
            asked.append(limited.submit(request, on_event=on_event))
    reasons = [generation.result().finish_reason for generation in asked]
    assert reasons == ["length", "cancelled", "length"]


@pytest.mark.parametrize("limited", [(6, 1), (6, 4)], indirect=True)
def test_long_prompts_are_read_in_smaller_chunks(limited: Engine, seed: int) -> None:
    prompt = text(random.Random(seed), 1_500)
    needs = room(limited).needs
    assert needs.reading(Shape(1_500), 2048) > 6 * MB > needs.reading(Shape(1_500), 64)
    mx.reset_peak_memory()
    told = [e.processed for e in limited.generate(prompt, options=SHORT) if isinstance(e, Progress)]
    assert len(told) > 5
    assert mx.get_peak_memory() <= limit_of(limited)


@pytest.mark.parametrize("limited", [(6, 1), (6, 4)] if SWEEP else [(6, 1)], indirect=True)
def test_what_is_kept_makes_room(limited: Engine, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(6):
        limited.generate(text(chance, 1_200), options=SHORT).result()
        assert mx.get_active_memory() <= limit_of(limited)
    assert 0 < limited.cache_stats()["conversations"] < 6


@pytest.mark.parametrize("limited", [(0.5, 1), (0.5, 4)], indirect=True)
def test_an_answer_ends_where_memory_does(limited: Engine) -> None:
    """Alone, it may have what there is; it is not refused for tokens that it may never make."""
    endless = GenerationOptions(max_tokens=2**30, logit_bias={2: -100})
    mx.reset_peak_memory()
    end = limited.generate("Hello", options=endless).result()
    assert end.finish_reason == "length"
    assert 100 < len(end.tokens) < 1_000
    assert mx.get_peak_memory() <= limit_of(limited)


def test_estimates_of_prompts(folder: Path, seed: int) -> None:
    """At most a quarter above what MLX counts, and never below."""
    chance, options = random.Random(seed), GenerationOptions(max_tokens=1)
    with load(folder, cache_bytes=0) as engine:
        needs = room(engine).needs
        for tokens in (500, 1500, 2200):
            estimate = needs.kv(tokens + 1, options) + needs.reading(Shape(tokens), 2048)

            def answer(asked: str = text(chance, tokens - 1)) -> None:
                engine.generate(asked, options=options).result()

            assert estimate / 1.25 <= most_taken(answer, estimate / 1.25) <= estimate, tokens


def test_a_smaller_image_is_recommended_that_fits(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("torch")
    from support.qwen2_vl_reference import Qwen2VLReference

    reference = Qwen2VLReference(seed)
    written(reference, tmp_path)
    settings = tmp_path / "preprocessor_config.json"
    limits = {"size": {"shortest_edge": 512, "longest_edge": 2**16}}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | limits))
    assert reference.image_token is not None
    asked = Request([5, 6, reference.image_token, 7], [Image.new("RGB", (150, 140))], SHORT)
    with load(tmp_path) as engine:
        prompt = engine._builder().build(asked.prompt, asked.images)
        shape = Shape.of(prompt, lambda digest: False)
        needed = room(engine).needs.reading(shape, 64)
    weights = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    limit = mx.get_active_memory() + weights + needed * 7 // 10
    with load(tmp_path, memory_bytes=limit) as engine:
        refused = engine.submit(asked)
        with pytest.raises(NotEnoughMemory, match=r"max_image_size=\d+ needs \d+ MiB") as caught:
            refused.result()
        told = re.search(r"max_image_size=(\d+)", str(caught.value))
        assert told is not None
        smaller = replace(SHORT, max_image_size=int(told[1]))
        assert engine.submit(replace(asked, options=smaller)).result().tokens


def test_the_server_says_so(folder: Path, seed: int) -> None:
    weights = (folder / "model.safetensors").stat().st_size
    limit = mx.get_active_memory() + weights + MB
    with load(folder, memory_bytes=limit, parallel=2) as engine, running(engine) as server:
        reply = server.chat(text(random.Random(seed), 20_000))
        assert (reply.status, reply.error["code"]) == (400, "not_enough_memory")
        assert "shorten it" in reply.error["message"]
        assert server.chat("Hi", max_tokens=3).status == 200


def test_what_is_cached_is_not_read_again(folder: Path) -> None:
    with load(folder) as engine:
        whole, new = (Shape(32_000, cached) for cached in (0, 31_950))
        needs = room(engine).needs
        assert 10 * needs.reading(new, 2048) < needs.reading(whole, 2048)


def test_it_is_checked(folder: Path) -> None:
    for wrong in (-1, 1.5, "much"):
        with pytest.raises(OptionError, match="memory_bytes"):
            load(folder, memory_bytes=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="the model's weights alone take"):
        load(folder, memory_bytes=1000)
    weights = (folder / "model.safetensors").stat().st_size
    with pytest.raises(OptionError, match="the model's weights alone take"):
        load(folder, draft=folder, memory_bytes=weights * 3 // 2)
