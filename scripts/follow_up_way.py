"""Count the functions on the way of a warm follow-up without pictures, from `Chat.send` to its end.

    python scripts/follow_up_way.py [--model MODEL] [--json FILE]

Every function of Sightline's packages counts that is called on any thread, each once, however often
it is called; what Python makes of a comprehension is no function. Lists them by file, for an engine
that makes one answer at a time and for one that makes eight.
"""

import argparse
import json
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "model_kit", "vision_add_ons")
NO_FUNCTIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<module>")
sys.path.insert(0, str(ROOT))

from model_kit.blas import preload_openblas  # noqa: E402

preload_openblas()

from engine import Engine, GenerationOptions, load  # noqa: E402
from engine.worker import Task  # noqa: E402


class Way:
    """What is called while it is watched, on this thread and on the engine's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._codes: set[CodeType] = set()

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self._codes.add(frame.f_code)

    def __enter__(self) -> "Way":
        self._on_the_engine(self._note)
        threading.setprofile(self._note)  # for threads that begin meanwhile
        self._codes.clear()
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self._on_the_engine(None)  # when it has tidied up behind the answer
        self._codes.discard(Task.run.__code__)  # that was this

    def _on_the_engine(self, note: Any) -> None:
        self._engine._worker.call(lambda *_: sys.setprofile(note)).result()

    def functions(self) -> dict[str, list[str]]:
        """Names by file, in the order of the files' lines."""
        found: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for code in self._codes:
            file = Path(code.co_filename)
            if code.co_name in NO_FUNCTIONS or not file.is_relative_to(ROOT):
                continue
            if (name := str(file.relative_to(ROOT))).startswith(PACKAGES):
                found[name].append((code.co_firstlineno, code.co_qualname))
        return {file: [name for _, name in sorted(found[file])] for file in sorted(found)}


def follow_up(model: str, **options: Any) -> dict[str, list[str]]:
    """The functions on the way of the third question of a conversation."""
    with load(model, **options) as engine:
        chat = engine.chat(options=GenerationOptions(max_tokens=8))
        for question in ("What is a river?", "And what is a mill?"):
            chat.send(question).result()
        with Way(engine) as way:
            generation = chat.send("What turns in the evening?")
            for _ in generation:
                pass
        assert generation.result().cached_tokens > 0
        return way.functions()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--json", type=Path, help="write the names here too")
    args = parser.parse_args()
    ways = {"parallel=1": follow_up(args.model), "parallel=8": follow_up(args.model, parallel=8)}
    for options, way in ways.items():
        print(f"{options}: {sum(map(len, way.values()))} functions in {len(way)} files")
        for file, names in way.items():
            print(f"  {file} ({len(names)})")
            for name in names:
                print(f"    {name}")
    if args.json:
        args.json.write_text(json.dumps(ways, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
