"""Gemma 3n's tower by timm, where it is installed, and ours on the same weights."""

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from support.gemma3n_reference import VISION
from support.mobilenetv5 import drawn_pixels, drawn_weights
from vision_add_ons.gemma3n.config import ARCHITECTURE, TowerConfig
from vision_add_ons.gemma3n.tower import MobileNetV5
from vision_add_ons.weights import parameters

STORED = Path(__file__).with_name("mobilenetv5_of_timm.json")
SEED, EVERY = 7, 16
"""What is stored: the values of every so manieth channel, of weights and pixels of this seed."""


def of_timm(args: dict[str, Any] | None) -> Any:
    """timm's tower, as transformers builds it."""
    import timm

    # timm takes entries out of what it is given.
    return timm.create_model(ARCHITECTURE, num_classes=0, **copy.deepcopy(args or {}))


def ours(args: dict[str, Any] | None, seed: int, side: int) -> np.ndarray:
    """What our tower makes of the same weights and pixels: [places, 2048]."""
    tower = MobileNetV5(TowerConfig.read({**VISION, "model_args": args}))
    weights = drawn_weights(shapes_of(tower), seed)
    turned = [
        (n, mx.array(np.moveaxis(w, 1, -1) if w.ndim == 4 else w)) for n, w in weights.items()
    ]
    tower.load_weights(turned)
    return np.array(tower(mx.array(drawn_pixels(seed, side))).flatten(0, 1))


def shapes_of(tower: MobileNetV5) -> dict[str, tuple[int, ...]]:
    """The shapes of our tower's weights by their names, as torch has them."""
    return {
        name: (w.shape[0], w.shape[3], *w.shape[1:3]) if w.ndim == 4 else w.shape
        for name, w in parameters(tower).items()
    }
