"""Kill processes that save conversations, at random moments, and go on with what they left.

    python scripts/check_kills.py --kills 100 [--seed N]

A process restores a conversation, talks, and saves it again and again, to a file by name and into
a cache folder; it is killed by SIGKILL. Then both must load, with the old state or the new one,
without a warning, and the next answer must be the one that a cold engine gives.
"""

import argparse
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

from engine import Engine, GenerationOptions, load  # noqa: E402

SHORT = GenerationOptions(max_tokens=4)
MAX_MESSAGES = 20


def talk(folder: Path, place: Path) -> None:
    """What the killed process does; it ends by being killed."""
    with load(folder, cache_dir=place / "cache") as engine:
        saved = place / "talk"
        chat = engine.chat(options=SHORT, restore=saved if saved.exists() else None)
        print("ready", flush=True)
        number = 0
        while True:
            if len(chat.messages) >= MAX_MESSAGES:
                chat = engine.chat(options=SHORT)
            chat.send(f"Question {number}?").result()
            chat.save(saved).result()
            number += 1
            print(number, flush=True)


def kill_once(folder: Path, place: Path, chance: random.Random) -> int:
    """Start the process, kill it a moment after it has saved; how often it has."""
    code = f"import sys; sys.modules['torch'] = None; sys.argv[0] = {__file__!r}; "
    code += f"import check_kills as c; c.talk(c.Path({str(folder)!r}), c.Path({str(place)!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT / "scripts"), "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        seen = [process.stdout.readline() for _ in range(chance.randint(1, 3))]
        assert all(seen)
        time.sleep(chance.uniform(0, 0.2))  # the next save is under way, or any after it
        process.send_signal(signal.SIGKILL)
        return len(seen) + len(process.stdout.read().split())


def check(engine: Engine, cold: Engine, place: Path) -> bool:
    """Go on with what was saved, as a cold engine would; whether the KV cache was of use."""
    saved = place / "talk"
    if not saved.exists():
        return False
    chat = engine.chat(options=SHORT, restore=saved)
    messages = [*chat.messages, {"role": "user", "content": "And then?"}]
    end = chat.send("And then?").result()
    expected = cold.generate(messages, options=SHORT).result()
    assert end.tokens == expected.tokens
    return end.disk_tokens > 0


def run(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """How many saves were finished, and how often the KV cache was of use afterwards."""
    chance = random.Random(seed)
    warnings: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = warnings.append  # type: ignore[method-assign]
    logging.getLogger("sightline").addHandler(handler)
    saves = warm = 0
    with tempfile.TemporaryDirectory() as directory, load(folder, cache_bytes=0) as cold:
        place = Path(directory)
        for _ in range(kills):
            saves += kill_once(folder, place, chance)
            with load(folder, cache_dir=place / "cache") as engine:
                warm += check(engine, cold, place)
    assert not warnings, [record.getMessage() for record in warnings]
    return saves, warm


def main() -> int:
    from support import tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as directory:
        folder = tiny.save_of_letters(args.seed, Path(directory) / "model")
        saves, warm = run(folder, args.kills, args.seed)
    print(f"{args.kills} kills, {saves} saves finished before them, warm after {warm} of them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
