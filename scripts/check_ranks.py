"""Random conversations on a model that several ranks hold, against the same ones on one.

    python scripts/check_ranks.py [--ranks 2] [--steps 20] [--seed N] [--family NAME ...]

Starts MLX's launcher with the ring back end over loopback, once for each family's tiny checkpoint.
Tokens, what came from the cache, and why answers ended must be equal, log-probabilities within
2e-5. With `--kills N`, ranks are killed so often while answers are under way: these must end with
a typed error, and so must all processes. Needs the extras `dev` and `parity`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from engine import Engine, GenerationOptions, Request, TextDelta, load  # noqa: E402
from vision_add_ons.testing import BOS, TOLERANCE, VOCAB, WORDS  # noqa: E402

SECONDS = 600
"""For a launch to end."""


def talk(engine: Engine, image_token: int, seed: int, steps: int) -> list[dict[str, Any]]:
    """What comes of so many random requests: of several conversations, with images or without,
    drawn or not, some cut, cancelled or branched."""
    chance = random.Random(seed)
    pool = [
        Image.frombytes("RGB", size, chance.randbytes(size[0] * size[1] * 3))
        for size in ((40, 30), (28, 52), (40, 30))
    ]
    talks: list[tuple[list[int], list[Image.Image]]] = []
    owners: list[Any] = []
    found = []
    for _ in range(steps):
        move = chance.random()
        if not talks or move < 0.25:
            talks.append(([BOS], []))
            owners.append(type("Owner", (), {})())
            at = len(talks) - 1
        else:
            at = chance.randrange(len(talks))
        if move > 0.9:  # another begins as this one stands
            talks.append((list(talks[at][0]), list(talks[at][1])))
            owners.append(type("Owner", (), {})())
            at = len(talks) - 1
        if 0.8 < move < 0.9:  # nobody holds it any more
            owners[at] = None
        tokens, images = talks[at]
        tokens += chance.choices(WORDS, k=chance.randrange(1, 9))
        if chance.random() < 0.4:
            tokens.append(image_token)
            images.append(chance.choice(pool))
        tokens += chance.choices(WORDS, k=chance.randrange(1, 5))
        options = GenerationOptions(
            max_tokens=chance.choice((1, 4, 8)),
            temperature=chance.choice((0.0, 0.7)),
            seed=chance.randrange(2**31),
            top_logprobs=VOCAB,
            prefill_step_size=chance.choice((7, 2048)),
            repetition_penalty=chance.choice((1.0, 1.2)),
        )
        leave = chance.randrange(1, 6) if chance.random() < 0.2 else 0
        asked = Request(list(tokens), list(images), options, owner=owners[at])
        found.append(_asked(engine, asked, leave))
        tokens += found[-1]["tokens"]
    return found


def _asked(engine: Engine, request: Request, leave: int) -> dict[str, Any]:
    told: list[TextDelta] = []

    def note(event: object) -> None:
        if isinstance(event, TextDelta) and event.token is not None:
            told.append(event)
            if len(told) == leave:
                generation.cancel()

    generation = engine.submit(request, on_event=note)
    end = generation.result()
    rows = np.zeros((len(told), VOCAB))
    for row, delta in zip(rows, told, strict=True):
        for token, logprob in delta.top_logprobs:
            row[token] = logprob
    return {
        "tokens": list(end.tokens),
        "cached": end.cached_tokens,
        "reason": end.finish_reason,
        "encoded": end.images_encoded,
        "logprobs": rows.tolist(),
    }


def held(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The largest relative error of log-probabilities. Raises `AssertionError` for what differs."""
    worst = 0.0
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in ("tokens", "reason", "cached", "encoded"):
            assert a[name] == b[name], (step, name, a[name], b[name])
        x, y = np.array(a["logprobs"]), np.array(b["logprobs"])
        if x.size:
            worst = max(worst, float(np.linalg.norm(x - y) / np.linalg.norm(y)))
    assert worst <= TOLERANCE, worst
    return worst


def launch(ranks: int, *arguments: str) -> list[str]:
    """The command by which MLX's launcher starts this script on so many ranks of this machine."""
    launcher = Path(sys.executable).with_name("mlx.launch")
    command = [str(launcher), "-n", str(ranks), "--backend", "ring", "--"]
    return [*command, sys.executable, __file__, *arguments]


def launched(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """This script on so many ranks, when all of them have ended."""
    return subprocess.run(
        launch(ranks, *arguments),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )


def child(args: argparse.Namespace) -> int:
    """On each rank: the first talks, the others follow and never come back from `load`."""
    rank = os.environ["MLX_RANK"]
    args.out.with_name(f"pid{rank}").write_text(str(os.getpid()))
    if args.kills:
        return endless(args)
    with load(args.child, cache_bytes=3 * 2**20) as engine:
        found = talk(engine, args.image_token, args.seed, args.steps)
    args.out.write_text(json.dumps(found))
    return 0


def endless(args: argparse.Namespace) -> int:
    """Answers without an end, until a rank is gone; how they ended is written down."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends all ranks; the errors first
    engine = load(args.child)
    options = GenerationOptions(max_tokens=100_000, logit_bias={2: -100}, max_context=100_000)
    asked = [engine.generate([BOS, *WORDS[:5]], options=options) for _ in range(3)]
    next(event for event in asked[0] if isinstance(event, TextDelta))
    args.out.with_name("begun").touch()
    ends = []
    for generation in asked:
        try:
            ends.append(generation.result().finish_reason)
        except Exception as error:
            ends.append(type(error).__name__)
    try:
        engine.generate([BOS, *WORDS[:5]])
        ends.append("taken")
    except Exception as error:
        ends.append(type(error).__name__)
    args.out.write_text(json.dumps(ends))
    return 0


def kills(args: argparse.Namespace) -> None:
    """Kill ranks of launches that answer. Raises `AssertionError` for what does not end."""
    from support import tiny
    from support.waiting import wait_for

    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "model"
        tiny.save_of_few_words(tiny.of_few_words(3, max_position_embeddings=131_072), folder)
        for i in range(args.kills):
            place = Path(directory) / str(i)
            place.mkdir()
            told = ["--child", str(folder), "--out", str(place / "found.json"), "--kills", "1"]
            ran = subprocess.Popen(
                launch(args.ranks, *told), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            wait_for(lambda p=place: (p / "begun").exists())
            time.sleep(chance.random())
            victim = chance.randrange(args.ranks)
            pids = [int((place / f"pid{rank}").read_text()) for rank in range(args.ranks)]
            os.kill(pids[victim], signal.SIGKILL)
            started = time.perf_counter()
            ran.wait(SECONDS)
            wait_for(lambda all=pids: not any(map(_lives, all)))
            took = time.perf_counter() - started
            ends: list[str] = []
            if victim:
                wait_for(lambda p=place: (p / "found.json").exists())
                ends = json.loads((place / "found.json").read_text())
                assert not {"stop", "length", "taken"} & set(ends), ends
            print(f"rank {victim} of {args.ranks} killed: {took:.1f} s, {ends}", flush=True)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="of each family")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--family", nargs="*", help="only these, by the beginnings of their names")
    parser.add_argument("--kills", type=int, default=0, help="of ranks, in place of conversations")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--image-token", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    from support.families import FAMILIES

    from vision_add_ons.testing import written

    print(f"seed {args.seed}")
    if args.kills:
        kills(args)
        return 0
    for family in FAMILIES:
        if args.family and not family.name.startswith(tuple(args.family)):
            continue
        with tempfile.TemporaryDirectory() as directory:
            folder, out = Path(directory) / "model", Path(directory) / "found.json"
            reference = family(args.seed)
            written(reference, folder)
            started = time.perf_counter()
            told = ["--child", str(folder), "--out", str(out), "--seed", str(args.seed)]
            told += ["--steps", str(args.steps), "--image-token", str(reference.image_token)]
            ran = launched(args.ranks, *told)
            if not out.exists():
                lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
                if any("cannot be held by several ranks" in line for line in lines):
                    print(f"{family.name:24}refused: no shard")
                    continue
                print(ran.stdout, ran.stderr)
                raise AssertionError(f"{family.name}: the launch ended with {ran.returncode}")
            with load(folder, cache_bytes=3 * 2**20) as engine:
                alone = talk(engine, reference.image_token, args.seed, args.steps)
            worst = held(json.loads(out.read_text()), alone)
        took = time.perf_counter() - started
        cached = sum(one["cached"] for one in alone)
        print(
            f"{family.name:24}{args.steps} steps on {args.ranks} ranks, {cached} tokens cached, "
            f"worst error {worst:.1e}, {took:.0f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
