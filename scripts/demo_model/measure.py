"""Measuring through the engine: how often each skill's answer is exactly right.

    python -m scripts.demo_model.measure --assets ASSETS --samples 1000 [--skills word count]

ASSETS is what `python -m scripts.demo_model.assets` gathered. Prints the table of the model card;
compared are the answers' words, without case, punctuation and articles. In "swap", one question is
asked about a picture and then about another one: both answers must be right, and so must differ.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

from model_kit.blas import preload_openblas

preload_openblas()

from engine import Engine, GenerationOptions, load  # noqa: E402
from scripts.demo_model.assets import Assets  # noqa: E402
from scripts.demo_model.data import SKILLS, Sample, held_out, normalised  # noqa: E402

SHORT = GenerationOptions(max_tokens=24)
AIMS = {
    "name": 0.90,
    "position": 0.90,
    "count": 0.90,
    "colour": 0.95,
    "word": 0.80,
    "yes_no": 0.90,
    "swap": 0.90,
}


def ask(engine: Engine, sample: Sample) -> tuple[str, str]:
    """The answer to a sample's last question, and the right one; earlier answers are given."""
    messages = []
    for turn in sample.turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    messages.pop()
    messages[0]["images"] = [sample.image]  # type: ignore[assignment]
    answer = engine.generate(messages, options=SHORT).result().answer
    return normalised(answer), normalised(sample.turns[-1].answer)


def measure(
    engine: Engine, assets: Assets, skills: list[str], count: int, seed: int
) -> Iterator[tuple[str, float, list[str]]]:
    """Of each skill the share of right answers, and a line for each that was wrong."""
    for skill in skills:
        right, wrong = [], []
        for sample in held_out(skill, count, seed, assets):
            answer, expected = ask(engine, sample)
            right.append(answer == expected)
            if answer != expected:
                wrong.append(f"{sample.turns[-1].question} {answer!r}, not {expected!r}")
        if skill == "swap":
            right = [a and b for a, b in zip(right[1:], right[:-1], strict=True)]
        yield skill, sum(right) / len(right), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1000, help="of each skill")
    parser.add_argument("--skills", nargs="*", default=[*SKILLS, "swap"])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    assets = Assets.load(args.assets)
    print(f"{args.samples} samples of each skill, seed {args.seed}\n")
    print("| skill | exactly right | aim |\n| --- | --- | --- |")
    # Enough for what a sample asks twice; no conversation of another comes back.
    with load(args.model, cache_bytes=1 << 28) as engine:
        started = time.perf_counter()
        for skill, share, wrong in measure(engine, assets, args.skills, args.samples, args.seed):
            aim = f"{AIMS[skill]:.0%}" if skill in AIMS else ""
            print(f"| {skill} | {share:.1%} | {aim} |", flush=True)
            for line in wrong[:3]:
                print(f"<!-- {line} -->")
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
