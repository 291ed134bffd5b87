"""Gemma 3's spans at the ends of prompts, and what its parts do to others.

What every family holds is checked in tests/parity.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from support.gemma3_reference import ROW, Gemma3Reference

from engine import Engine, GenerationOptions, load
from engine.decoding.prefill import prefill
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.errors import PromptError
from vision_add_ons.testing import WORDS, written


@pytest.fixture(scope="module")
def reference() -> Gemma3Reference:
    return Gemma3Reference(1)


@pytest.fixture(scope="module")
def folder(reference: Gemma3Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(reference, tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with load(folder) as loaded:
        yield loaded


def test_a_picture_at_the_very_end(engine: Engine, reference: Gemma3Reference) -> None:
    """Whose last row mlx-lm's loop would run alone: it is run with the others, and once more."""
    picture = Image.new("RGB", (9, 9), "red")
    tokens = [1, *list(WORDS)[:5], *[ROW] * 16]
    expected = reference.logits(tokens, [picture], [])[-1]
    one = GenerationOptions(max_tokens=1)
    answer = engine.generate([*tokens[:6], ROW], images=[picture], options=one).result()
    assert answer.tokens[0] == int(expected.argmax())


def test_a_picture_at_the_end_of_a_long_prompt(engine: Engine) -> None:
    picture = Image.new("RGB", (9, 9), "red")
    prompt = [1, *list(WORDS)[:30], ROW]
    with pytest.raises(PromptError, match="let some text follow"):
        engine.generate(prompt, images=[picture]).result()
    one = GenerationOptions(max_tokens=1)
    assert engine.generate([*prompt, 9], images=[picture], options=one).result().tokens


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.gemma3:Gemma3AddOn"
    assert any("64 x 64 pixels, 16 rows" in line for line in report.lines())


def test_the_caller_s_embeddings_stay_as_they_are(folder: Path) -> None:
    """mlx-lm's Gemma 3 scales the array that it is given."""
    kit = load_model_kit(folder)
    embeddings = mx.random.normal((12, 64))
    before = np.array(embeddings)
    options = GenerationOptions(prefill_step_size=5)
    model, caches = kit.text_model, kit.make_cache()
    assert list(prefill(model, [9] * 12, embeddings, caches, [(2, 6)], options)) == [0, 2, 7, 11]
    assert np.array_equal(np.array(embeddings), before)


def test_nothing_of_others_is_changed_by_loading(folder: Path) -> None:
    """mlx-vlm's import sets environment variables and replaces a method of transformers."""
    script = f"""
import os, sys
sys.modules["torch"] = None  # the add-on needs none, and transformers takes seconds to import it
from transformers import AutoProcessor
before = dict(os.environ), vars(AutoProcessor)["from_pretrained"]
from engine import load
load({str(folder)!r}).close()
assert "mlx_vlm.models.gemma3" in sys.modules
assert (dict(os.environ), vars(AutoProcessor)["from_pretrained"]) == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)
