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
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

import numpy as np  # noqa: E402
from support.gemma3n_reference import SIDE, TOWER  # noqa: E402
from support.mobilenetv5 import TorchMobileNetV5, computed, digest  # noqa: E402
from support.timm_tower import EVERY, SEED, STORED, of_timm, ours  # noqa: E402


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
