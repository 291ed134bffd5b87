"""The demo model with eyes: what ships is what was trained, and is made of ordinary parts."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load as mlx_lm_load
from mlx_lm.tuner.utils import load_adapters
from PIL import Image
from support.seeds import SWEEP

from engine import GenerationOptions, TextDelta, load
from model_kit.demo_eyes import PARTS
from model_kit.kit import load_model_kit

TRAINED = Path(__file__).with_name("trained_demo")
"""What `scripts/demo_model/reference.py` made of the trained weights, in PyTorch."""

VOCAB = 49152


@pytest.mark.whole
def test_its_logits_are_the_trained_model_s(seeing_demo: Path) -> None:
    references = mx.load(str(TRAINED / "reference.safetensors"))["logits"]  # type: ignore[call-overload, index]
    samples: list[dict[str, Any]] = json.loads((TRAINED / "reference.json").read_text())
    assert len(samples) == len(references) == 6
    some = slice(None) if SWEEP else slice(None, None, 2)
    with load(seeing_demo) as engine:
        for sample, logits in zip(samples[some], np.array(references)[some], strict=True):
            with Image.open(TRAINED / sample["picture"]) as picture:
                messages = [
                    {"role": role, "content": text}
                    for question, answer in sample["turns"]
                    for role, text in (("user", question), ("assistant", answer))
                ][:-1]
                messages[0]["images"] = [picture.copy()]  # type: ignore[assignment]
            options = GenerationOptions(max_tokens=1, top_logprobs=100)
            generation = engine.generate(messages, options=options)
            assert generation.prompt.tokens == sample["prompt"]
            (told,) = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
            expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
            for token, logprob in told.top_logprobs:
                assert logprob == pytest.approx(expected[token], abs=1e-3)
            assert told.token == sample["next"] == sample["right"]


def test_the_adapter_is_an_ordinary_one(
    demo: Path, seeing_demo: Path, tmp_path: Path, seed: int
) -> None:
    """mlx-lm puts it on the plain language model, and the same decoder comes out."""
    for name in ("adapters.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((PARTS / name).read_bytes())
    plain = mlx_lm_load(str(demo))[0]
    adapted = load_adapters(plain, str(tmp_path))
    adapted.eval()
    decoder = load_model_kit(seeing_demo, decoder_only=True).text_model
    assert decoder is not None
    mx.random.seed(seed)
    tokens = mx.random.randint(0, VOCAB, (1, 40))
    ours, theirs = decoder(tokens), adapted(tokens)
    assert (mx.linalg.norm(ours - theirs) / mx.linalg.norm(theirs)).item() < 2e-5


def test_what_ships_is_small() -> None:
    sizes = {p.name: p.stat().st_size for p in PARTS.iterdir() if p.is_file()}
    assert 10e6 < sum(sizes.values()) < 25e6
