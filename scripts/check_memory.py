"""Prompts and images of sizes around the memory that there is: each answered, or refused by name.

    python scripts/check_memory.py [--sizes 200] [--seed N] [--family NAME] [--longest 600]

On tiny checkpoints of every family, with a limit that is the median of what the requests need. One
after the other, what MLX held at most is compared with what was estimated before; four at once, it
must never be more than the limit. Needs the extras `dev` and `parity`.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from support.families import FAMILIES  # noqa: E402

from engine import Engine, GenerationOptions, NotEnoughMemory, Request, load  # noqa: E402
from engine.memory.room import Shape  # noqa: E402
from vision_add_ons.testing import Reference, written  # noqa: E402

OPTIONS = GenerationOptions(max_tokens=2)
FLOOR = 2 * 2**20
"""Bytes below which nothing is said of a ratio: what MLX needs for anything at all."""


def requests(reference: Reference, count: int, longest: int, seed: int) -> list[Request]:
    """Texts, and prompts with one picture, of all sizes."""
    chance, draw = random.Random(seed), np.random.default_rng(seed)
    made = []
    for _ in range(count):
        tokens = [chance.randint(5, 60) for _ in range(chance.randint(20, 400))]
        pictures = []
        if chance.random() < 0.7:
            sides = (chance.randint(20, longest), chance.randint(20, longest), 3)
            pictures = [Image.fromarray(draw.integers(0, 255, sides, dtype=np.uint8))]
            if reference.image_token is not None:
                tokens.insert(len(tokens) // 2, reference.image_token)
        made.append(Request(tokens, pictures, OPTIONS))
    return made


def needed(engine: Engine, request: Request) -> int:
    """What is estimated for a request, in bytes."""
    prompt = engine._builder().build(request.prompt, request.images)
    needs = engine._worker.memory.room.needs  # type: ignore[union-attr]
    reading = needs.reading(Shape.of(prompt, lambda digest: False), OPTIONS.prefill_step_size)
    return needs.kv(len(prompt.tokens) + OPTIONS.max_tokens, OPTIONS) + reading


def fits_the_context(engine: Engine, request: Request) -> bool:
    """Whether the tiny model's context is long enough."""
    prompt = engine._builder().build(request.prompt, request.images)
    return len(prompt.tokens) + OPTIONS.max_tokens < (engine.report.max_context or 2**31)


def outcome(generation: Any) -> str:
    """How an answer ended. Raises what is no refusal for want of memory."""
    try:
        return str(generation.result().finish_reason)
    except NotEnoughMemory:
        return "refused"


def check(folder: Path, asked: Sequence[Request]) -> tuple[str, bool]:
    """A line of the table, and whether all is as it should be."""
    ratios = []
    with load(folder, cache_bytes=0) as engine:
        asked = [request for request in asked if fits_the_context(engine, request)]
        needs = [needed(engine, request) for request in asked]
        for request, estimate in zip(asked, needs, strict=True):
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            engine.submit(request).result()
            taken = mx.get_peak_memory() - before
            if taken > FLOOR:
                ratios.append(estimate / taken)
    base = mx.get_active_memory()
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    limit = base + weights + int(statistics.median(needs))
    with load(folder, memory_bytes=limit, cache_bytes=weights, parallel=4) as engine:
        mx.reset_peak_memory()
        ends = Counter(outcome(g) for g in [engine.submit(request) for request in asked])
        peak = mx.get_peak_memory()
    ratios.sort()
    shown = "none large enough"
    if ratios:
        shown = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}"
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    share = (peak - base) / (limit - base)
    line = f"{told}; at most {share:.2f} of the limit; estimates over peaks {shown}"
    return line, peak <= limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, default=200, help="of each family")
    parser.add_argument("--longest", type=int, default=600, help="side of an image, in pixels")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--family", nargs="*", help="only these, by the beginnings of their names")
    args = parser.parse_args()
    chosen = [f for f in FAMILIES if not args.family or f.name.startswith(tuple(args.family))]
    print(f"seed {args.seed}")
    right = True
    for family in chosen:
        with tempfile.TemporaryDirectory() as directory:
            reference = family(args.seed)
            written(reference, Path(directory))
            asked = requests(reference, args.sizes, args.longest, args.seed)
            line, kept = check(Path(directory), asked)
        right = right and kept
        print(f"{family.name:24}{'' if kept else 'OVER THE LIMIT: '}{line}", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
