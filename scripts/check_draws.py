"""Thousands of short answers, drawn with drafts and by mlx-lm's loop alone: one distribution.

    python scripts/check_draws.py [--draws 10000] [--seed N] [--draft itself|other]

A tiny random model is asked the same again and again, on fresh seeds. The tokens at each place, of
which drafts may have guessed all but the first, are counted, and both ways' counts are held against
each other by a chi-square test; the exit code tells whether any is less likely than one in 10,000.
Needs the extras `dev` and `parity`.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

from scipy.stats import chi2_contingency  # noqa: E402
from support import tiny  # noqa: E402

from engine import Engine, GenerationOptions, load  # noqa: E402
from vision_add_ons.testing import BOS, WORDS  # noqa: E402

LEAST = 10
"""Draws of a token, of both ways together, below which it counts among the rare ones."""

UNLIKELY = 1e-4

TOKENS = 4


def draws(engine: Engine, prompt: list[int], count: int, **options: int) -> tuple[list, int]:
    """The tokens of each of so many answers, and how many of them all were drafted."""
    asked = [
        engine.generate(
            prompt,
            options=GenerationOptions(
                temperature=0.8, top_p=0.95, max_tokens=TOKENS, logit_bias={2: -100}, **options
            ),
        )
        for _ in range(count)
    ]
    ends = [generation.result() for generation in asked]
    return [end.tokens for end in ends], sum(end.drafted_tokens for end in ends)


def likelihood(ours: list, theirs: list, place: int) -> float:
    """How likely two samples of one distribution are so far apart, by the tokens at a place."""
    counts = [Counter(tokens[place] for tokens in one) for one in (ours, theirs)]
    common = [t for t in counts[0] | counts[1] if counts[0][t] + counts[1][t] >= LEAST]
    table = [[count[t] for t in common] for count in counts]
    for row, count in zip(table, counts, strict=True):
        row.append(sum(count.values()) - sum(row))
    if not table[0][-1] + table[1][-1]:
        table = [row[:-1] for row in table]
    return float(chi2_contingency(table).pvalue)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--draft", choices=("itself", "other"), default="other")
    args = parser.parse_args()
    prompt = [BOS, *random.Random(args.seed).choices(WORDS, k=12)]
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as directory:
        model, other = Path(directory) / "model", Path(directory) / "other"
        tiny.save_of_few_words(tiny.of_few_words(args.seed), model)
        tiny.save_of_few_words(tiny.of_few_words(args.seed + 1), other)
        started = time.perf_counter()
        with load(model, draft=model if args.draft == "itself" else other) as engine:
            ours, drafted = draws(engine, prompt, args.draws, draft_tokens=3)
        with load(model) as engine:
            theirs, _ = draws(engine, prompt, args.draws)
    likely = [likelihood(ours, theirs, place) for place in range(TOKENS)]
    print(
        f"{args.draws} answers of {TOKENS} tokens, {drafted} tokens drafted, p by place: "
        + ", ".join(f"{p:.3f}" for p in likely)
        + f", {time.perf_counter() - started:.0f} s"
    )
    return int(min(likely) < UNLIKELY)


if __name__ == "__main__":
    sys.exit(main())
