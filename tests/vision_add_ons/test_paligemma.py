"""What is cached of PaliGemma's prompts, which see themselves whole; weights without use.

What every family holds is checked in tests/parity.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.paligemma_reference import IMAGE, ROWS, SIDE, PaliGemma2Reference, PaliGemmaReference
from support.tiny import edit_weights

from engine import Engine, load
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.testing import BOS, TOLERANCE, WORDS, centred, relative_error, written
from vision_add_ons.testing.kit import ask

WORD = list(WORDS)


REFERENCE = PaliGemmaReference(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(REFERENCE, tmp_path_factory.mktemp("paligemma"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with load(folder) as loaded:
        yield loaded


def test_the_same_prompt_again(engine: Engine) -> None:
    prompt = [Image.new("RGB", (30, 20), "red"), BOS, *WORD[:9]]
    answer, logits, _ = ask(engine, prompt, REFERENCE)
    again, same, end = ask(engine, prompt, REFERENCE)
    assert (end.cached_tokens, end.images_encoded) == (end.prompt_tokens - 1, 0)
    assert again == answer
    assert np.array_equal(logits, same)


@pytest.mark.parametrize("other", ["text after it", "another picture", "less text", "no picture"])
def test_nothing_serves_another_prompt(engine: Engine, folder: Path, other: str) -> None:
    """Not even what both begin with: each token has seen those at the end."""
    red, blue = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    prompt = [BOS, *WORD[:5], red, *WORD[5:9]]
    answer, _, _ = ask(engine, prompt, REFERENCE)
    changed = {
        "text after it": [*prompt, *answer, *WORD[9:12]],
        "another picture": [BOS, *WORD[:5], blue, *WORD[5:9]],
        "less text": prompt[:-1],
        "no picture": [*prompt[:6], *WORD[5:9]],
    }[other]
    warm, logits, end = ask(engine, changed, REFERENCE)
    assert end.cached_tokens == 0
    with load(folder) as fresh:
        cold, expected, _ = ask(fresh, changed, REFERENCE)
    assert warm == cold
    assert np.array_equal(logits, expected)


def test_text_before_a_picture_is_not_reused(engine: Engine) -> None:
    text = [BOS, *WORD[:20]]
    ask(engine, text, REFERENCE)
    _, _, end = ask(engine, [*text, Image.new("RGB", (9, 9)), WORD[0]], REFERENCE)
    assert end.cached_tokens == 0


def test_nothing_but_pictures(tmp_path: Path) -> None:
    """Also beyond Gemma 2's window, and asked twice."""
    reference = PaliGemma2Reference(1)
    written(reference, tmp_path)
    pictures = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    expected = centred(reference.logits([IMAGE] * 2 * ROWS, pictures, [])[-1:])
    with load(tmp_path) as engine:
        for _ in range(2):
            _, logits, _ = ask(engine, pictures, reference)
            assert relative_error(logits[:1], expected) <= TOLERANCE


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.paligemma:PaliGemmaAddOn"
    assert any(f"{SIDE} x {SIDE} pixels, {ROWS} rows" in line for line in report.lines())


def test_weights_without_use(copy: Path) -> None:
    """Of the tower's own head, and of old checkpoints."""
    spare = {"head.probe": torch.ones(1, 1, 32), "embeddings.position_ids": torch.arange(ROWS)}
    edit_weights(copy, lambda t: t.update({f"vision_tower.{n}": w for n, w in spare.items()}))
    assert load_model_kit(copy).add_on is not None
