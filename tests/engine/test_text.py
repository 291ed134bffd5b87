"""Text: the same tokens and log-probabilities as mlx-lm alone, to the bit."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load as mlx_lm_load
from mlx_lm import stream_generate
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from support import tiny
from support.seeds import SWEEP

from engine import Engine, GenerationOptions, TextDelta, load

WORDS = [
    "river",
    "lamp",
    "seven",
    "quiet",
    "engine",
    "cloud",
    "paper",
    "winter",
    "garden",
    "copper",
    "sail",
    "moon",
]


@pytest.fixture(scope="module")
def alone(demo: Path) -> Any:
    """mlx-lm's own load of the same folder."""
    return mlx_lm_load(str(demo))


@pytest.fixture(scope="module")
def tiny_alone(tiny_folder: Path) -> Any:
    return mlx_lm_load(str(tiny_folder))


@pytest.fixture
def fresh(engine: Engine) -> Engine:
    """The default model's engine with an empty prompt cache."""
    return forgotten(engine)


@pytest.fixture
def tiny_fresh(tiny_engine: Engine) -> Engine:
    return forgotten(tiny_engine)


def forgotten(engine: Engine) -> Engine:
    engine._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
    return engine


@dataclass
class Pair:
    """An engine that has nothing cached and mlx-lm's load of its model, and how much to ask."""

    engine: Engine
    alone: Any
    words: int
    tokens: int


@pytest.fixture(params=["default", "tiny"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """The default model, and for longer texts a quicker one."""
    return pair_of(request)


def pair_of(request: pytest.FixtureRequest) -> Pair:
    if request.param == "default":
        named, words, tokens = ("fresh", "alone"), 6, 4
    else:
        named, words, tokens = ("tiny_fresh", "tiny_alone"), 40, 24
    return Pair(*map(request.getfixturevalue, named), words, tokens)


@pytest.fixture(params=["default", "tiny"] if SWEEP else ["tiny"])
def any_pair(request: pytest.FixtureRequest) -> Pair:
    """The quicker one, where it is the same to any model; both in a sweep."""
    return pair_of(request)


def sentence(seed: int, words: int = 40) -> str:
    return "Tell me about " + " ".join(random.Random(seed).choices(WORDS, k=words)) + "."


def ours(engine: Engine, prompt: Any, options: GenerationOptions) -> tuple[list[int], list[float]]:
    deltas = [e for e in engine.generate(prompt, options=options) if isinstance(e, TextDelta)]
    deltas = [d for d in deltas if d.token is not None]
    return [d.token for d in deltas], [d.logprob for d in deltas]  # type: ignore[misc]


def theirs(alone: Any, prompt: Any, **kwargs: Any) -> tuple[list[int], list[float]]:
    model, tokenizer = alone
    if not isinstance(prompt, str):
        prompt = mx.array(prompt)
    tokens, logprobs = [], []
    for response in stream_generate(model, tokenizer, prompt, **kwargs):
        if response.finish_reason != "stop":
            tokens.append(response.token)
            logprobs.append(float(response.logprobs[response.token]))
    return tokens, logprobs


def test_greedy_equals_mlx_lm(pair: Pair, seed: int) -> None:
    prompt = sentence(seed, pair.words)
    options = GenerationOptions(max_tokens=pair.tokens, logprobs=True)
    assert ours(pair.engine, prompt, options) == theirs(pair.alone, prompt, max_tokens=pair.tokens)


def test_seeded_sampling_equals_mlx_lm(any_pair: Pair, seed: int) -> None:
    prompt = sentence(seed, any_pair.words)
    options = GenerationOptions(
        max_tokens=any_pair.tokens,
        temperature=0.9,
        top_p=0.95,
        top_k=40,
        min_p=0.02,
        seed=seed,
        logprobs=True,
    )
    mx.random.seed(seed)
    sampler = make_sampler(temp=0.9, top_p=0.95, min_p=0.02, top_k=40)
    assert ours(any_pair.engine, prompt, options) == theirs(
        any_pair.alone, prompt, max_tokens=any_pair.tokens, sampler=sampler
    )


def test_penalties_and_bias_equal_mlx_lm(any_pair: Pair, seed: int) -> None:
    prompt = sentence(seed, any_pair.words)
    options = GenerationOptions(
        max_tokens=any_pair.tokens,
        logprobs=True,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.2,
        logit_bias={500: 1.5, 28: -3.0},
    )
    processors = make_logits_processors(
        logit_bias={500: 1.5, 28: -3.0},
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.2,
    )
    expected = theirs(
        any_pair.alone, prompt, max_tokens=any_pair.tokens, logits_processors=processors
    )
    assert ours(any_pair.engine, prompt, options) == expected


def test_warm_follow_up_equals_mlx_lm_handed_the_same_cache(pair: Pair, seed: int) -> None:
    """What a follow-up runs is what mlx-lm runs on the same cache and the same new tokens."""
    model, tokenizer = pair.alone
    first = tokenizer.encode(sentence(seed, pair.words))
    options = GenerationOptions(max_tokens=pair.tokens // 2, logprobs=True)
    answer, _ = ours(pair.engine, first, options)
    cache = make_prompt_cache(model)
    assert theirs(pair.alone, first, max_tokens=pair.tokens // 2, prompt_cache=cache)[0] == answer
    history = first + answer
    # mlx-lm runs the end token of an answer too; what follows here does not continue from it.
    trim_prompt_cache(cache, cache[0].offset - len(history))
    new = tokenizer.encode(" And then: " + sentence(seed + 1, 10))
    expected = theirs(pair.alone, new, max_tokens=pair.tokens // 2, prompt_cache=cache)
    generation = pair.engine.generate(history + new, options=options)
    deltas = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
    assert generation.result().cached_tokens == len(history)
    assert ([d.token for d in deltas], [d.logprob for d in deltas]) == expected


def test_warm_equals_cold(tiny_fresh: Engine, tiny_alone: Any, seed: int) -> None:
    """Across other chunk borders: the same greedy tokens, log-probabilities within 2e-5."""
    _model, tokenizer = tiny_alone
    first = tokenizer.encode(sentence(seed, 120))
    options = GenerationOptions(max_tokens=8, logprobs=True)
    ours(tiny_fresh, first, options)
    prompt = first + tokenizer.encode(sentence(seed + 1, 20))
    generation = tiny_fresh.generate(prompt, options=options)
    warm = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
    assert generation.result().cached_tokens == len(first)
    tokens, logprobs = theirs(tiny_alone, prompt, max_tokens=8)
    assert [d.token for d in warm] == tokens
    a, b = np.array([d.logprob for d in warm]), np.array(logprobs)
    assert np.linalg.norm(a - b) / np.linalg.norm(b) <= 2e-5


def test_a_changed_middle_reuses_the_common_prefix(
    tiny_fresh: Engine, tiny_alone: Any, seed: int
) -> None:
    _model, tokenizer = tiny_alone
    first = tokenizer.encode(sentence(seed, 60))
    options = GenerationOptions(max_tokens=6, logprobs=True)
    ours(tiny_fresh, first, options)
    changed = first[:50] + tokenizer.encode(sentence(seed + 1, 30))
    shared = next(i for i, (a, b) in enumerate(zip(first, changed, strict=False)) if a != b)
    generation = tiny_fresh.generate(changed, options=options)
    tokens = list(generation.result().tokens)
    assert generation.result().cached_tokens == shared
    assert tokens == theirs(tiny_alone, changed, max_tokens=6)[0]
    # The first conversation is still whole: its cache was shared, not cut.
    again = tiny_fresh.generate(first, options=options).result()
    assert again.cached_tokens == len(first) - 1


def test_penalties_see_cached_tokens(tiny_fresh: Engine, tiny_alone: Any, seed: int) -> None:
    """A penalty must not depend on how much of the prompt happened to be cached."""
    prompt = tiny_alone[1].encode(sentence(seed, 30))
    options = GenerationOptions(max_tokens=10, repetition_penalty=1.8, penalty_context=64)
    cold = tiny_fresh.generate(prompt, options=options).result()
    warm = tiny_fresh.generate(prompt, options=options).result()
    assert (cold.cached_tokens, warm.cached_tokens) == (0, len(prompt) - 1)
    assert warm.tokens == cold.tokens


def test_a_seed_repeats_and_touches_nobody_elses_random_state(
    tiny_engine: Engine, seed: int
) -> None:
    options = GenerationOptions(max_tokens=16, temperature=1.2, seed=seed)
    mx.random.seed(seed)
    before = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    expected = random.random(), np.random.rand()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    first = tiny_engine.generate("Once", options=options).result()
    assert (random.random(), np.random.rand()) == expected
    assert mx.random.uniform(shape=(4,)).tolist() == before
    assert tiny_engine.generate("Once", options=options).result().tokens == first.tokens
    assert first.seed == seed


def test_unseeded_requests_draw_afresh_and_tell_their_seed(tiny_engine: Engine) -> None:
    options = GenerationOptions(max_tokens=16, temperature=1.5)
    one = tiny_engine.generate("Once", options=options).result()
    two = tiny_engine.generate("Once", options=options).result()
    assert one.seed != two.seed
    assert one.tokens != two.tokens
    again = GenerationOptions(max_tokens=16, temperature=1.5, seed=one.seed)
    assert tiny_engine.generate("Once", options=again).result().tokens == one.tokens


def test_top_logprobs_are_the_likeliest(tiny_engine: Engine) -> None:
    options = GenerationOptions(max_tokens=4, top_logprobs=5)
    deltas = list(tiny_engine.generate("The sky is", options=options))
    deltas = [d for d in deltas if isinstance(d, TextDelta) and d.token is not None]
    assert len(deltas) == 4
    for delta in deltas:
        assert len(delta.top_logprobs) == 5
        values = [value for _, value in delta.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert delta.top_logprobs[0] == (delta.token, delta.logprob)  # greedy


def test_no_top_p_and_no_temperature_are_greedy(tiny_engine: Engine) -> None:
    expected = tiny_engine.generate("The sky is", options=GenerationOptions(max_tokens=6)).result()
    for options in ({"temperature": 2.0, "top_p": 0.0}, {"temperature": 1e-310}):
        chosen = tiny_engine.generate(
            "The sky is", options=GenerationOptions(max_tokens=6, **options)
        )
        assert chosen.result().tokens == expected.tokens


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of heads as wide as the groups that are quantized."""
    return tiny.save_of_letters(7, tmp_path_factory.mktemp("wide") / "model", head_dim=32)


@pytest.mark.parametrize("bits", [4, 8])
def test_kv_quantization_equals_mlx_lm(wide_folder: Path, seed: int, bits: int) -> None:
    alone = mlx_lm_load(str(wide_folder))
    with load(wide_folder) as engine:
        prompt = sentence(seed, 20)
        options = GenerationOptions(
            max_tokens=8, logprobs=True, kv_bits=bits, kv_group_size=32, quantized_kv_start=0
        )
        extra = {"kv_bits": bits, "kv_group_size": 32, "quantized_kv_start": 0}
        assert ours(engine, prompt, options) == theirs(alone, prompt, max_tokens=8, **extra)
        # Nor is one that was quantized later than a cold run would be.
        late = GenerationOptions(
            max_tokens=2, kv_bits=bits, kv_group_size=32, quantized_kv_start=15
        )
        engine.generate(prompt, options=late).result()
        start = engine.tokenize(prompt)[:10]
        assert engine.generate(start, options=late).result().cached_tokens == 0
        # A cache of other precision is no prefix of this one.
        plain = engine.generate(prompt, options=GenerationOptions(max_tokens=2)).result()
        assert plain.cached_tokens == 0


def test_prefill_steps_change_nothing_but_rounding(tiny_fresh: Engine, seed: int) -> None:
    prompt = sentence(seed, 50)
    whole = GenerationOptions(max_tokens=8)
    steps = GenerationOptions(max_tokens=8, prefill_step_size=7)
    with_steps = tiny_fresh.generate(prompt, options=steps).result()
    tiny_fresh._worker.memory.budget.shrink(0)  # type: ignore[union-attr]
    at_once = tiny_fresh.generate(prompt, options=whole).result()
    assert (with_steps.cached_tokens, at_once.cached_tokens) == (0, 0)
    assert with_steps.tokens == at_once.tokens


def test_trimmed_caches_are_exact(tiny_alone: Any, seed: int) -> None:
    """mlx-lm's own trimming, which the prompt cache relies on."""
    model, tokenizer = tiny_alone
    prompt = tokenizer.encode(sentence(seed))
    cache = make_prompt_cache(model)
    theirs(tiny_alone, prompt, max_tokens=3, prompt_cache=cache)
    trim_prompt_cache(cache, cache[0].offset - len(prompt) + 1)
    warm = theirs(tiny_alone, prompt[-1:], max_tokens=5, prompt_cache=cache)[0]
    assert warm == theirs(tiny_alone, prompt, max_tokens=5)[0]
