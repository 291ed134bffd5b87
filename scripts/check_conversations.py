"""Thousands of random conversations on tiny checkpoints of every family, warm against cold.

    python scripts/check_conversations.py --steps 10000 [--together 6] [--seed N] [--family NAME]

Every answer is made twice, by an engine that keeps what it can and by one that keeps nothing;
tokens must be equal and logits within 2e-5. Needs the extras `dev` and `parity`.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

from support.engine_conversations import Simulation  # noqa: E402
from support.families import FAMILIES  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="of all families together")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--family", nargs="*", help="only these, by the beginnings of their names")
    parser.add_argument("--together", type=int, default=1, help="conversations that ask at once")
    parser.add_argument("--draft", choices=("lookup", "itself"), help="guess the answers ahead")
    args = parser.parse_args()
    chosen = [f for f in FAMILIES if not args.family or f.name.startswith(tuple(args.family))]
    print(f"seed {args.seed}")
    for family in chosen:
        with tempfile.TemporaryDirectory() as directory:
            started = time.perf_counter()
            with Simulation.of(
                family, Path(directory), args.seed, args.together, args.draft
            ) as simulation:
                for _ in range(-(-args.steps // len(chosen))):
                    simulation.step()
        print(
            f"{family.name:24}{simulation.steps} steps, {simulation.cached} tokens cached, "
            f"{simulation.from_disk} of them from disk after {simulation.restarts} restarts, "
            f"{simulation.reused} images reused, {simulation.drafted} tokens drafted, "
            f"worst error {simulation.worst:.1e}, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
