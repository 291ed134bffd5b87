"""Hold Gemma 3n's tower against timm's own, which the tests do without.

    pip install timm    # 1.0.31 wants torchvision; best into an environment of its own
    python -m scripts.timm_tower [--seeds 5] [--side 256] [--write]

Small towers of the shape that the tests use, and one of published size, are given random weights
and pixels. What timm makes of them is compared with ours in MLX and with the tests' own in torch,
which stands in for timm in the tests' reference. `--write` writes what the tests hold both against
(`tests/support/mobilenetv5_of_timm.json`): some of timm's values, and a digest of the published
tower's names and shapes.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from support.gemma3n_reference import SIDE, TOWER, VISION  # noqa: E402
from support.mobilenetv5 import (  # noqa: E402
    TorchMobileNetV5,
    computed,
    digest,
    drawn_pixels,
    drawn_weights,
)

from vision_add_ons.gemma3n.config import ARCHITECTURE, TowerConfig  # noqa: E402
from vision_add_ons.gemma3n.tower import MobileNetV5  # noqa: E402

STORED = ROOT / "tests/support/mobilenetv5_of_timm.json"
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
    from vision_add_ons.weights import parameters

    return {
        name: (w.shape[0], w.shape[3], *w.shape[1:3]) if w.ndim == 4 else w.shape
        for name, w in parameters(tower).items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--side", type=int, default=256, help="of the published tower's pixels")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    worst = 0.0
    cases = [(TOWER, seed, SIDE) for seed in range(options.seeds)]
    if options.side:
        cases.append((None, SEED, options.side))
    for args, seed, side in cases:
        expected = computed(of_timm(args), seed, side)
        found = {"in MLX": ours(args, seed, side)}
        if args is not None:
            found["in torch"] = computed(TorchMobileNetV5(**args), seed, side)
        for name, made in found.items():
            error = float(np.abs(made - expected).max() / np.abs(expected).max())
            worst = max(worst, error)
            print(f"{error:.1e}  {'small' if args else 'published'}, seed {seed}, {name}")
    if options.write:
        import timm

        published = {n: tuple(w.shape) for n, w in of_timm(None).state_dict().items()}
        values = computed(of_timm(TOWER), SEED, SIDE)[:, ::EVERY]
        stored = {
            "timm": timm.__version__,
            "published": digest(published),
            "values": [[round(float(v), 7) for v in row] for row in values],
        }
        STORED.write_text(json.dumps(stored) + "\n")
    return int(worst > 2e-5)


if __name__ == "__main__":
    sys.exit(main())
