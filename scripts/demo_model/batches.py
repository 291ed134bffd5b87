"""Batches for training, drawn by worker processes into memory that they share with the trainer."""

import mmap
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from scripts.demo_model.assets import Assets
from scripts.demo_model.colours import COLOURS
from scripts.demo_model.drawing import draw, letter_places
from scripts.demo_model.questions import ask_all
from scripts.demo_model.scenes import LETTERS, SHAPES, TRAINING, Scene, SceneMaker, Thing
from scripts.demo_model.tokens import OTHER_SYSTEMS, SYSTEM, ChatTokens

SIDE = 128  # pixels that the towers see
PATCH = 16
GRID = SIDE // PATCH
ROWS = GRID * GRID

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchShape:
    """`pictures` a batch, of which as many as fit are asked about in `sequences` chats.

    The others teach the towers alone. `length` counts tokens and the rows of pictures.
    """

    pictures: int
    sequences: int = 0
    length: int = 288

    def arrays(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        chats = (self.sequences, self.length)
        return {
            "pixels": ((self.pictures, SIDE, SIDE, 3), np.uint8),
            "kinds": ((self.pictures, ROWS), np.int16),
            "letters": ((self.pictures, ROWS, 2), np.int16),
            "tokens": (chats, np.int32),
            # Which of all rows of all pictures stands here, or -1 for a token.
            "slots": (chats, np.int32),
            # What follows here, where that is part of an answer; else -1.
            "targets": (chats, np.int32),
        }


def kinds_count(assets: Assets) -> int:
    return 1 + len(assets.names) + len(SHAPES) * len(COLOURS) + 10


def square(image: Image.Image) -> np.ndarray:
    """As the engine's preprocessing makes the picture a square."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


class BatchMaker:
    def __init__(self, assets: Assets, tokens: ChatTokens | None, shape: BatchShape) -> None:
        self.assets, self.chat, self.shape = assets, tokens, shape
        self.scenes = SceneMaker(assets)

    def fill(self, rng: Random, out: Arrays) -> None:
        scenes = [self.scenes.make(rng, TRAINING) for _ in range(self.shape.pictures)]
        for i, scene in enumerate(scenes):
            out["pixels"][i] = square(draw(scene, self.assets))
            self._label(scene, out["kinds"][i], out["letters"][i])
        used = 0
        for i in range(self.shape.sequences):
            used = self._chat(
                rng, scenes, used, [out[n][i] for n in ("tokens", "slots", "targets")]
            )

    # --- what each patch shows ------------------------------------------------------------

    def _label(self, scene: Scene, kinds: np.ndarray, letters: np.ndarray) -> None:
        kinds[:], letters[:] = 0, 0
        grid = kinds.reshape(GRID, GRID)
        across, down = GRID / scene.width, GRID / scene.height
        for thing in scene.things:
            if thing.kind == "text":
                slots = letters.reshape(GRID, GRID * 2)
                shown = zip(thing.name, letter_places(thing, self.assets), strict=True)
                for letter, (x, y) in shown:
                    row = min(GRID - 1, max(0, int(y * down)))
                    column = min(GRID * 2 - 1, max(0, int(x * across * 2)))
                    slots[row, column] = 1 + LETTERS.index(letter)
                continue
            half = 0.42 * thing.width
            top, bottom = _cells((thing.y - half) * down, (thing.y + half) * down)
            left, right = _cells((thing.x - half) * across, (thing.x + half) * across)
            grid[top:bottom, left:right] = self._kind(thing)

    def _kind(self, thing: Thing) -> int:
        drawings = len(self.assets.names)
        if thing.kind == "drawing":
            return 1 + thing.index
        if thing.kind == "shape":
            which = SHAPES.index(thing.shape) * len(COLOURS) + COLOURS.index(thing.colour)
            return 1 + drawings + which
        return 1 + drawings + len(SHAPES) * len(COLOURS) + int(thing.name)

    # --- chats ----------------------------------------------------------------------------

    def _chat(self, rng: Random, scenes: list[Scene], used: int, out: list[np.ndarray]) -> int:
        """Fill one sequence with one or more pictures from `used` on; return the next unused."""
        assert self.chat is not None
        tokens, slots, targets = out
        tokens[:], slots[:], targets[:] = 0, -1, -1
        length = self.shape.length
        system = SYSTEM if rng.random() < 0.88 else rng.choice(OTHER_SYSTEMS)
        start = self.chat.system(system)
        tokens[: len(start)] = start
        end = len(start)
        while used < len(scenes):
            groups = ask_all(rng, scenes[used], self.scenes)
            most = rng.choice((1, 2, 4, 8, 8))
            asked = 0
            for group in groups[:most]:
                for turn in group:
                    before, question = self.chat.before_user, self.chat.ids(turn.question)
                    answer = self.chat.answer(turn)
                    rows = ROWS * (asked == 0)
                    question = [*question, *self.chat.before_answer]
                    whole = len(before) + rows + len(question) + len(answer)
                    if end + whole + 1 > length:
                        return used + (asked > 0)
                    tokens[end : end + len(before)] = before
                    end += len(before)
                    if rows:
                        slots[end : end + rows] = used * ROWS + np.arange(rows)
                        end += rows
                    tokens[end : end + len(question)] = question
                    end += len(question)
                    tokens[end : end + len(answer)] = answer
                    targets[end - 1 : end - 1 + len(answer)] = answer
                    end += len(answer)
                    tokens[end : end + len(self.chat.after_answer)] = self.chat.after_answer
                    end += len(self.chat.after_answer)
                    asked += 1
                else:
                    continue
                break
            used += 1
        return used


def _cells(start: float, end: float) -> tuple[int, int]:
    """The cells whose centres lie between; the nearest one if none does."""
    first, last = max(0, int(np.ceil(start - 0.5))), min(GRID, int(np.floor(end - 0.5)) + 1)
    if last <= first:
        first = min(GRID - 1, max(0, int((start + end) / 2)))
        last = first + 1
    return first, last


class Batches:
    """Endless batches in a fixed order: worker w makes those numbered w, w + workers, ..."""

    def __init__(
        self,
        assets: Path,
        tokenizer: Path | None,
        shape: BatchShape,
        seed: int,
        workers: int,
        start: int = 0,
        ahead: int = 3,
    ) -> None:
        context = multiprocessing.get_context("fork")
        specs = shape.arrays()
        size = sum(int(np.prod(dims)) * np.dtype(kind).itemsize for dims, kind in specs.values())
        self._rings, self._free, self._ready, self._processes = [], [], [], []
        self._next, self._held = 0, None
        self._workers, self._ahead = workers, ahead
        for worker in range(workers):
            ring = [_views(mmap.mmap(-1, size + 64 * len(specs)), specs) for _ in range(ahead)]
            free, ready = context.Semaphore(ahead), context.Semaphore(0)
            process = context.Process(
                target=_work,
                args=(assets, tokenizer, shape, ring, free, ready, seed, start + worker, workers),
                daemon=True,
            )
            process.start()
            self._rings.append(ring)
            self._free.append(free)
            self._ready.append(ready)
            self._processes.append(process)

    def __next__(self) -> Arrays:
        """The next batch, valid until the next call."""
        if self._held is not None:
            self._free[self._held].release()
        worker, turn = self._next % self._workers, self._next // self._workers
        while not self._ready[worker].acquire(timeout=5):
            if not self._processes[worker].is_alive():
                raise RuntimeError("a worker that draws pictures has died")
        self._next, self._held = self._next + 1, worker
        return self._rings[worker][turn % self._ahead]

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _views(memory: mmap.mmap, specs: dict[str, tuple[tuple[int, ...], Any]]) -> Arrays:
    arrays, offset = {}, 0
    for name, (dims, kind) in specs.items():
        count = int(np.prod(dims))
        arrays[name] = np.frombuffer(memory, kind, count, offset).reshape(dims)
        offset += -(-count * np.dtype(kind).itemsize // 64) * 64
    return arrays


def _work(
    assets: Path,
    tokenizer: Path | None,
    shape: BatchShape,
    ring: list[Arrays],
    free: Any,
    ready: Any,
    seed: int,
    first: int,
    step: int,
) -> None:
    tokens = ChatTokens(tokenizer) if tokenizer else None
    maker = BatchMaker(Assets.load(assets), tokens, shape)
    number = first
    while True:
        free.acquire()
        maker.fill(Random(f"batch {seed} {number}"), ring[(number - first) // step % len(ring)])
        ready.release()
        number += step
