"""Mistral's sliding window, in every layer: the whole context is served, with pictures too."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import RotatingKVCache
from mlx_lm.utils import load_model as load_plain
from support import tiny
from support.moxin_reference import MoxinReference

from engine import GenerationOptions, Request, load
from model_kit import load_model_kit
from vision_add_ons.moxin import MoxinAddOn
from vision_add_ons.testing import BOS, TOLERANCE, WORDS, Kit, relative_error

WINDOW = 24


@pytest.mark.parametrize("step", [7, 64])
def test_beyond_the_window(step: int, tmp_path: Path, seed: int) -> None:
    """Logits after a prompt in chunks, and after each token that follows."""
    model = tiny.of_few_words(seed, sliding_window=WINDOW)
    kit = load_model_kit(tiny.save_of_few_words(model, tmp_path / "mistral"))
    assert kit.max_context == kit.report.max_context == tiny.SIZES["max_position_embeddings"]
    assert kit.text_model is not None
    tokens = [int(t) for t in np.random.default_rng(seed).choice(list(WORDS), 70)]
    caches = kit.make_cache()
    assert all(isinstance(cache, RotatingKVCache) for cache in caches)
    for start in range(0, 60, step):
        chunk = mx.array([tokens[start : min(start + step, 60)]])
        logits = kit.text_model(chunk, cache=caches)
    assert relative_error(np.array(logits[0, -1]), tiny.last_logits(model, tokens[:60])) <= 2e-5
    for end in range(61, 70):
        logits = kit.text_model(mx.array([tokens[end - 1 : end]]), cache=caches)
        expected = tiny.last_logits(model, tokens[:end])
        assert relative_error(np.array(logits[0, -1]), expected) <= TOLERANCE


def test_without_a_window_it_is_mlx_lm_s(tmp_path: Path, seed: int) -> None:
    """To the last bit."""
    folder = tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "mistral")
    kit = load_model_kit(folder)
    assert kit.text_model is not None
    tokens = mx.array([[BOS, *list(WORDS)[:40]]])
    plain, _ = load_plain(folder)
    assert mx.array_equal(kit.text_model(tokens), plain(tokens))


def test_conversations_beyond_the_window(tmp_path: Path, seed: int) -> None:
    """Warm as cold, and back to the border of a turn."""
    model = tiny.of_few_words(seed, sliding_window=WINDOW)
    folder = tiny.save_of_few_words(model, tmp_path / "mistral")
    options = GenerationOptions(max_tokens=5)
    history = [BOS, *np.random.default_rng(seed).choice(list(WORDS), 40).tolist()]
    with load(folder) as warm, load(folder, cache_bytes=0) as cold:
        for turn in range(3):
            question = history + list(WORDS)[turn * 5 : turn * 5 + 5]
            for _ in range(2):  # the second is another answer to it
                end = warm.submit(Request(question, options=options, owner=warm)).result()
                assert end.tokens == cold.generate(question, options=options).result().tokens
            assert end.cached_tokens == len(question) - 1
            history = question + list(end.tokens)


def test_pictures_beyond_the_window(tmp_path: Path, seed: int) -> None:
    with_window = MoxinReference(seed, window=WINDOW)
    kit = Kit(MoxinAddOn, with_window, load, tmp_path, seed, lambda *_: None)
    case = kit.case("beyond the window")
    for prompt in (
        [BOS, case.image(), *case.words(30)],
        [BOS, *case.words(9), case.image(), *case.words(4), case.image(1), *case.words(20)],
    ):
        case.compare(prompt, kit.engine, with_window)
    kit.close()
