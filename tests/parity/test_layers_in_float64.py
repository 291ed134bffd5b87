"""Decoders for whose whole float32 does not always suffice: each layer is as exact as
transformers' own in float32, given what float64 computed of the layers before it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
from support import layer_by_layer
from support.gemma3n_reference import Gemma3nReference
from support.gemma4_reference import Gemma4MoeReference, Gemma4Reference
from support.qwen3_5_reference import Qwen35MoeReference, Qwen35Reference
from support.seeds import seed_of

from engine import load
from vision_add_ons.gemma3n import Gemma3nAddOn
from vision_add_ons.gemma4 import Gemma4AddOn
from vision_add_ons.qwen3_5 import Qwen35AddOn
from vision_add_ons.testing import BOS, Kit, relative_error
from vision_add_ons.testing.kit import request

MOST = 1.5
"""How often as far off as transformers' float32 a layer may be, by the median of the tokens."""
FAR = 3e-6
"""Off by more, a layer has another meaning."""


def errors(made: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Of each token, relative."""
    width = exact.shape[-1]
    pairs = zip(made.reshape(-1, width), exact.reshape(-1, width), strict=True)
    return np.array([relative_error(a, b) for a, b in pairs])


@pytest.mark.parametrize(
    ("add_on", "of", "pictures"),
    [
        pytest.param(Qwen35AddOn, Qwen35Reference, True, id="qwen3_5"),
        pytest.param(Qwen35AddOn, Qwen35MoeReference, True, id="qwen3_5_moe"),
        pytest.param(Gemma4AddOn, Gemma4Reference, False, id="gemma4"),
        pytest.param(Gemma4AddOn, Gemma4MoeReference, False, id="gemma4 with experts"),
        pytest.param(Gemma3nAddOn, Gemma3nReference, False, id="gemma3n"),
    ],
)
def test_layers(add_on: Any, of: Any, pictures: bool, tmp_path: Path) -> None:
    seed = seed_of(of.name + " by layers")
    reference = of(seed)
    model = reference.model
    model.set_experts_implementation("eager")  # the usual one knows no float64
    kit = Kit(add_on, reference, load, tmp_path, seed)
    case = kit.case("layers")
    prompt = [BOS, *case.words(9), *([case.image()] if pictures else []), *case.words(24)]
    tokens, images = reference.expanded(prompt)
    # The reference of Qwen3.5 computes in float64 itself.
    logits: Callable[..., Any] = (
        super(Qwen35Reference, reference).logits if pictures else reference.logits
    )
    asked, given = request(prompt, reference)

    def ask() -> None:
        options = replace(kit.engine.options_class(), max_tokens=1)
        kit.engine.generate(asked, images=given, options=options).result()

    model.double()
    inputs, exact = layer_by_layer.theirs(model, lambda: logits(tokens, images, []))
    model.float()
    _, single = layer_by_layer.theirs(model, lambda: logits(tokens, images, []), inputs)
    ours = layer_by_layer.ours(kit.engine, inputs, ask)
    kit.close()
    for layer, (a, b, c) in enumerate(zip(ours, single, exact, strict=True)):
        off, theirs = errors(a, c), errors(b, c)
        print(f"layer {layer}: {np.median(off):.1e} against {np.median(theirs):.1e}")
        assert np.median(off) <= MOST * np.median(theirs), layer
        assert off.max() <= max(FAR, MOST * theirs.max()), layer
