"""Decoders with layers that keep a state: no trimming brings an earlier one back, snapshots do."""

import random
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models.cache import ArraysCache
from support import hybrids, tiny
from support.as_if_cold import asked
from support.seeds import SWEEP

from engine import Engine, GenerationOptions, Request, UnsupportedCheckpoint, load
from engine.memory.kv_state import nbytes
from engine.memory.memory import Memory
from model_kit import load_model_kit
from vision_add_ons.testing import BOS, TOLERANCE, VOCAB, WORDS, relative_error


@pytest.fixture(params=hybrids.HYBRIDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> Path:
    return hybrids.save(request.param, seed, tmp_path / request.param)


@pytest.fixture(params=[1, 3])
def engines(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Engine]]:
    with load(folder, parallel=request.param) as warm, load(folder, cache_bytes=0) as cold:
        yield warm, cold


def drawn(seed: int, count: int) -> list[int]:
    return [BOS, *random.Random(seed).choices(WORDS, k=count)]


@pytest.mark.parametrize("name", hybrids.HYBRIDS)
def test_a_decoder_is_the_reference_s(name: str, tmp_path: Path, seed: int) -> None:
    """In chunks too; at most half as far again from float64 as the reference's float32 is."""
    model = hybrids.HYBRIDS[name](seed)
    kit = load_model_kit(tiny.save_of_few_words(model, tmp_path / name))
    assert kit.text_model is not None
    tokens, caches = drawn(seed, 50), kit.make_cache()
    assert any(isinstance(cache, ArraysCache) for cache in caches)
    kit.text_model(mx.array([tokens[:23]]), cache=caches)
    ours = np.array(kit.text_model(mx.array([tokens[23:]]), cache=caches)[0, -1])
    single = tiny.last_logits(model, tokens)
    with torch.no_grad():
        double = model.double()(torch.tensor([tokens])).logits[0, -1].numpy()
    assert relative_error(ours, double) <= max(TOLERANCE, 1.5 * relative_error(single, double))


def test_random_requests_are_answered_as_if_cold(engines: tuple[Engine, Engine], seed: int) -> None:
    """Whoever asks, whatever was cached, shared or cancelled before."""
    warm, cold = engines
    rng = random.Random(seed)
    words = drawn(seed, 60)
    reused = 0
    history = words[:20]
    for _ in range(16 if SWEEP else 9):
        if rng.random() < 0.6:
            prompt = history = history + rng.choices(words[1:], k=5)
        else:
            prompt = words[: rng.randrange(1, 60)] + rng.choices(words, k=rng.randrange(3))
        end = asked(warm, cold, prompt, rng)
        if end is None:
            continue
        reused += end.cached_tokens
        if prompt is history:
            history = history + list(end.tokens)
    assert reused > 40


def test_back_to_the_borders_of_turns(engines: tuple[Engine, Engine], seed: int) -> None:
    """Another answer, an earlier turn edited, and its follow-up: all but the new is reused."""
    warm, cold = engines
    options = GenerationOptions(max_tokens=4, prefill_step_size=16)

    def ask(prompt: list[int]) -> tuple[list[int], int]:
        end = warm.submit(Request(prompt, options=options, owner="Ada")).result()
        assert end.tokens == cold.generate(prompt, options=options).result().tokens
        return prompt + list(end.tokens), end.cached_tokens

    first = drawn(seed, 30)
    answered, _ = ask(first)
    second, cached = ask(answered + drawn(seed + 1, 9))
    assert cached >= len(answered) - 1
    # The same question again goes back to its end; another in its place to the first one's.
    assert ask(answered + drawn(seed + 1, 9))[1] == len(answered) + 10 - 1
    assert ask(first + drawn(seed + 2, 3))[1] == len(first) - 1
    assert ask(second + drawn(seed + 3, 3))[1] in (0, len(first) - 1, len(answered) + 10 - 1)


def test_a_conversation_outlives_its_engine(folder: Path, tmp_path: Path, seed: int) -> None:
    """Its states and the borders that it can go back to are in the file."""
    options = GenerationOptions(max_tokens=4)
    first = drawn(seed, 40)
    cache = {"cache_dir": tmp_path / "kept"}
    with load(folder, **cache) as engine:
        end = engine.submit(Request(first, options=options, owner=engine)).result()
        answered = first + list(end.tokens)
        question = answered + drawn(seed + 1, 9)
        before = engine.submit(Request(question, options=options, owner=engine)).result()
    with load(folder, **cache) as engine:
        again = engine.submit(Request(question, options=options)).result()
        assert again.tokens == before.tokens
        assert again.disk_tokens == len(question) - 1
    with load(folder, **cache) as engine:
        other = first + drawn(seed + 2, 5)
        end = engine.submit(Request(other, options=options)).result()
        assert end.disk_tokens == len(first) - 1
    with load(folder, cache_bytes=0) as cold:
        assert cold.generate(other, options=options).result().tokens == end.tokens


def test_a_border_holds_no_prompt(tmp_path: Path, seed: int) -> None:
    """mlx-lm's state is the end of an array as long as the chunk, all of which it would keep."""
    folder = hybrids.save("lfm2", seed, tmp_path / "lfm2")

    def held(memory: Memory) -> tuple[int, int]:
        snapshots = [entry.snapshots for entry in memory.prompts._entries.values()]
        counted = sum(nbytes((), own) for own in snapshots)
        before = mx.get_active_memory()
        for own in snapshots:
            own.clear()
        return before - mx.get_active_memory(), counted

    with load(folder) as engine:
        options = GenerationOptions(max_tokens=1)
        engine.submit(Request(drawn(seed, 400), options=options, owner=engine)).result()
        given_back, counted = engine._worker.call(held).result()
    assert 0 < given_back <= counted + 4096


@pytest.mark.parametrize(
    "kinds",
    [
        ["linear_attention"] * 4,
        ["full_attention", "linear_attention"] * 2,
        ["linear_attention", "full_attention", "full_attention", "linear_attention"],
    ],
)
def test_layers_that_mlx_lm_cannot_express(kinds: list[str], tmp_path: Path, seed: int) -> None:
    folder = hybrids.save("qwen3_5", seed, tmp_path / "qwen")
    tiny.edit_config(folder, layer_types=kinds)
    with pytest.raises(UnsupportedCheckpoint, match="layer_types"):
        load(folder)


@pytest.mark.parametrize("name", hybrids.HYBRIDS)
def test_scaled_ropes_are_refused(name: str, tmp_path: Path, seed: int) -> None:
    """mlx-lm's classes of these would leave the scaling out."""
    folder = hybrids.save(name, seed, tmp_path / name)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    tiny.edit_config(folder, rope_parameters=rope)
    with pytest.raises(UnsupportedCheckpoint, match="rope_type 'linear' is not supported"):
        load(folder)


def test_several_are_answered_together(folder: Path, seed: int) -> None:
    """Rows of different lengths: each as it is alone."""
    options = GenerationOptions(max_tokens=6, logprobs=True)
    prompts = [drawn(seed + i, 5 + 9 * i) for i in range(3)]
    with load(folder, cache_bytes=0) as engine:
        alone = [engine.generate(p, options=options).result().tokens for p in prompts]
    with load(folder, cache_bytes=0, parallel=3) as engine:
        assert engine.report.at_once.startswith("several")
        begun = [engine.submit(Request(p, options=options)) for p in prompts]
        assert [generation.result().tokens for generation in begun] == alone
    assert len(WORDS) < VOCAB
