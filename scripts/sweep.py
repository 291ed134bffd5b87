"""All that is random in the tests, in rounds on fresh seeds, until the time is up.

    python -m scripts.sweep [--minutes N] [--seed N] [--only NAME ...]

Each seed is printed with a line that repeats just that. What fails is shown, and counts in the exit
code; it becomes a test on a fixed seed. Needs the extras `dev` and `parity`.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PYTEST = ("-m", "pytest", "-n", "0", "-p", "no:cacheprovider")
ELSEWHERE = "not test_skills and not test_killed_while_saving and not test_the_document_holds"

ITEMS: dict[str, tuple[str, ...]] = {
    "parity": (*PYTEST, "tests/parity", "examples/sightline-llava/tests"),
    "tests": (*PYTEST, "tests", "--ignore=tests/parity", "-m", "drawn or whole", "-k", ELSEWHERE),
    "hypothesis": (*PYTEST, "tests", "-m", "hypothesis"),
    "schemathesis": (*PYTEST, "tests/server", "-k", "test_the_document_holds"),
    "scenes": (*PYTEST, "tests", "-k", "test_skills"),
    "conversations": ("scripts/check_conversations.py", "--steps", "400"),
    "together": ("scripts/check_conversations.py", "--steps", "200", "--together", "6"),
    "guessed": ("scripts/check_conversations.py", "--steps", "200", "--draft", "itself"),
    "lookup": ("scripts/check_conversations.py", "--steps", "100", "--draft", "lookup"),
    "draws": ("scripts/check_draws.py", "--draws", "5000", "--draft", "itself"),
    "schemas": (
        "scripts/check_schemas.py",
        "--schemas",
        "400",
        "--pictures",
        "40",
        "--tools",
        "40",
    ),
    "ranks": ("scripts/check_ranks.py", "--steps", "16"),
    "kills": ("scripts/check_kills.py", "--kills", "10"),
    "memory": ("scripts/check_memory.py", "--sizes", "24"),
    "damage": ("scripts/fuzz_checkpoints.py", "--files", "500"),
}
"""By name, what python is to run, without its seed."""


def sweep(name: str, seed: int) -> bool:
    """Run an item; whether all went well."""
    print(f"{name}: seed {seed}    python -m scripts.sweep --only {name} --seed {seed}", flush=True)
    began = time.monotonic()
    # Hypothesis takes its seed from the option, all else from the variable.
    option = "--hypothesis-seed" if "pytest" in ITEMS[name] else "--seed"
    ran = subprocess.run(
        [sys.executable, *ITEMS[name], f"{option}={seed}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SIGHTLINE_SEED": str(seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    outcome = "FAILED" if ran.returncode else "passed"
    print(f"    {outcome} after {time.monotonic() - began:.0f} s", flush=True)
    if ran.returncode:
        print(ran.stdout, flush=True)
    return ran.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="no item begins after them")
    parser.add_argument("--seed", type=int, help="run each item once, on this seed")
    parser.add_argument("--only", nargs="+", choices=ITEMS, default=list(ITEMS))
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    ran, failed = 0, []
    while args.seed is None or not ran:
        for name in args.only:
            if time.monotonic() > until:
                break
            seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
            ran += 1
            if not sweep(name, seed):
                failed.append(f"python -m scripts.sweep --only {name} --seed {seed}")
        if time.monotonic() > until:
            break
    print(f"{ran} items ran, {len(failed)} failed", *failed, sep="\n    ")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
