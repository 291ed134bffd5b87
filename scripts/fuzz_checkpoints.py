"""Load thousands of damaged checkpoints, and say what became of each.

    python scripts/fuzz_checkpoints.py --files 5000 [--seed N] [--family gemma3 ...]

Tiny checkpoints of a text model, Moxin, Gemma 3, Idefics3, Pixtral and Qwen2-VL are damaged at
random: their safetensors files, index, configs and tokenizers. Each is loaded by a process of its
own kind, so that a crash or a hang is seen. A load must end in a typed error whose one line names
what is wrong, or give the very model that the undamaged checkpoint is; where a config only changed
to another valid one, it may give another model that runs. All else is a failure, and its folder is
kept. Needs the extras `dev` and `parity`.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.checkpoint_damage import Damages  # noqa: E402
from support.damages.basics import Damage  # noqa: E402

HANG = 20
"""Seconds."""
GROWTH = 500
"""MiB of memory that a load of a tiny checkpoint may take."""
MOST = 8 << 30
"""Bytes of memory at which a process that runs away ends."""


class Loader:
    """A process that loads one damaged checkpoint after the other, and is replaced if it dies."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    def load(self, whole: Path, folder: Path, damage: Damage) -> dict[str, Any]:
        """What became of it, as `Outcome`'s fields."""
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = [str(whole), str(folder), damage.name, damage.accepted, damage.words]
        print(json.dumps(request), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], HANG)[0]:
            self.stop()
            return {"kind": "hang", "error": "", "failure": f"no answer within {HANG} s"}
        answer = self.process.stdout.readline()
        if answer:
            return json.loads(answer)
        code = self.process.wait()
        self.process = None
        tail = self.log.read_text(errors="replace")[-500:]
        return {"kind": "crash", "error": "", "failure": f"exit code {code}: {tail}"}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r})"
        code += "; import fuzz_checkpoints as f; f.serve()"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"no loader: {self.log.read_text()}")


def serve() -> None:
    """What the loading process does: a request a line, an answer a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    from support.damages.outcomes import outcome, portrait

    from model_kit.kit import load_model_kit

    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
    portraits: dict[str, Any] = {}
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        whole, folder, name, accepted, words = json.loads(line)
        if whole not in portraits:
            portraits[whole] = portrait(load_model_kit(whole))
            assert portrait(load_model_kit(whole)) == portraits[whole]
        before = _peak()
        damage = Damage(name, tuple(accepted), tuple(words))
        answer = vars(outcome(Path(folder), damage, portraits[whole]))
        grown = _peak() - before
        if grown > GROWTH:
            answer["failure"] += f" took {grown} MiB"
        print(json.dumps(answer), file=answers, flush=True)


def _peak() -> int:
    """The most memory that this process ever had, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def fuzz(wholes: dict[str, Path], place: Path, count: int, rng: random.Random) -> int:
    """Load `count` damaged checkpoints; how many failures there were, each told as it comes."""
    kinds: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    files: Counter[str] = Counter()
    failures = 0
    damages = {name: Damages(folder, rng) for name, folder in wholes.items()}
    loader = Loader(place / "log")
    started = time.perf_counter()
    for number in range(count):
        name = list(wholes)[number % len(wholes)]
        folder = place / f"damaged-{number}"
        damage = damages[name].write(folder)
        result = loader.load(wholes[name], folder, damage)
        kinds[result["kind"]] += 1
        errors[result["error"]] += bool(result["error"])
        files[damage.name.split(":")[0]] += 1
        if result["failure"]:
            failures += 1
            print(f"FAILURE {folder} ({name}), {damage.name}", flush=True)
            print(f"    {result['kind']} {result['error']}: {result['failure']}", flush=True)
        else:
            shutil.rmtree(folder)
    loader.stop()
    print(f"{count} damaged checkpoints in {time.perf_counter() - started:.0f} s")
    for title, counts in (("outcome", kinds), ("error", errors), ("file", files)):
        print(f"by {title}:", ", ".join(f"{n} {what}" for what, n in counts.most_common() if n))
    print(f"{failures} failures")
    return failures


def main() -> int:
    from model_kit.blas import preload_openblas

    preload_openblas()
    from support.damages.wholes import write_wholes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--family", nargs="*", help="only these, by the beginnings of their names")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    place = Path(tempfile.mkdtemp(prefix="damaged-checkpoints-"))
    wholes = write_wholes(place / "whole", args.seed)
    begin = tuple(args.family or [""])
    chosen = {name: folder for name, folder in wholes.items() if name.startswith(begin)}
    from model_kit.kit import load_model_kit

    for folder in chosen.values():
        load_model_kit(folder)  # or there is nothing to compare with
    failures = fuzz(chosen, place, args.files, random.Random(args.seed))
    if failures:
        print(f"their folders are kept in {place}")
    else:
        shutil.rmtree(place)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
