"""Loading a model: from what a user calls it to an engine that answers with it."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checks import (
    check_bytes,
    check_callback,
    check_cancel,
    check_count,
    check_flag,
    file_name,
)
from engine.engine import Engine
from engine.processes import check_mlx
from engine.ranks.ranks import launched
from engine.worker import Worker
from vision_add_ons.errors import AdapterError, CheckpointNotFound, EngineClosed, OptionError

if TYPE_CHECKING:
    from engine.memory.memory import Memory
    from model_kit.kit import ModelKit
    from vision_add_ons.base import VisionAddOn

CACHE_SHARE = 0.25
"""The share of the memory that the device recommends to use which the prompt cache may fill."""

CACHE_DIR_BYTES = 8 * 2**30
"""The most that a folder of KV caches takes, unless the caller says otherwise."""

MOST_PARALLEL = 256
"""The most answers that are made at once."""

LOOKUP = "lookup"
"""What stands where a draft model's name may, for prompt lookup alone."""

LoadProgress = Callable[[str, int, int], None]


def load(
    model: str | os.PathLike[str] = "demo",
    *,
    progress: LoadProgress | None = None,
    decoder_only: bool = False,
    vocab_only: bool = False,
    cache_bytes: int | None = None,
    memory_bytes: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_dir_bytes: int = CACHE_DIR_BYTES,
    adapter: str | os.PathLike[str] | None = None,
    add_on: "type[VisionAddOn] | None" = None,
    parallel: int = 1,
    draft: str | os.PathLike[str] | None = None,
    cancel: threading.Event | None = None,
) -> Engine:
    """Load a model and return an engine that answers with it.

    `model` is the folder of a checkpoint, the short name of a model (`"demo"`, or another that
    `sightline models` lists), or an id of the Hugging Face hub, `"org/name"` or
    `"org/name@revision"`; models are downloaded at their first use (see `model_kit.hub.resolve`).
    `decoder_only` loads a vision model's text half alone, `vocab_only` its tokenizer alone.
    `cache_bytes` is the prompt cache's budget; by default a quarter of the memory that the device
    recommends to use. `memory_bytes` is the most that the model and all its work may take, by
    default what the device recommends: a request that does not fit waits for those under way, or is
    refused (`NotEnoughMemory`). `cache_dir` is a folder in which conversations' KV caches outlive
    the engine, those of all models together within `cache_dir_bytes`. `adapter` is the folder of a
    low-rank adapter in mlx-lm's format, see `Engine.load_adapter`. `add_on` is the class of a
    vision add-on that serves the checkpoint in place of the one that the registry names: for one
    that is not installed, or an application without its packages' metadata. It is refused
    (`UnsupportedCheckpoint`) if its `model_types` do not hold the checkpoint's.
    `parallel` is how many answers are made at once: one after the other by default, each bit for
    bit as mlx-lm alone makes it; more are decoded together, each within rounding of what it is
    alone, so that nobody waits for another's answer.
    `draft` has answers guessed a few tokens ahead, which the model checks all at once: tokens that
    are right come sooner, and none is there but the model's own. It is a smaller model with the
    same tokenizer, named as `model` is, or "lookup", which needs none: it guesses what followed the
    latest words where they stood before, as in edits, quotes and code. Pictures are not shown to a
    draft. It serves an answer while no other is made, as far as it pays; see
    `GenerationOptions.draft_tokens`. Answers are then within rounding of mlx-lm's alone.
    `progress(stage, done, total)` is called from the engine's thread, from the start on; what it
    raises ends the load. Whoever sets `cancel` ends it too, with `EngineClosed`, when the library
    that is being imported or the weights that are being read are there. Raises a subclass of
    `CheckpointError`, `OptionError`, or `ForkedProcess` in a process that was forked after MLX was
    imported.
    """
    check_flag("decoder_only", decoder_only)
    check_flag("vocab_only", vocab_only)
    check_callback("progress", progress)
    check_cancel(cancel)
    if cache_bytes is not None:
        check_bytes("cache_bytes", cache_bytes)
    if memory_bytes is not None:
        check_bytes("memory_bytes", memory_bytes)
    check_bytes("cache_dir_bytes", cache_dir_bytes)
    check_count("parallel", parallel, MOST_PARALLEL)
    _check_add_on(add_on)
    named = _named(model, "the model")
    if adapter is not None:
        adapter = file_name(adapter, "the adapter", AdapterError)
    drafting = None if vocab_only or draft is None else _named(draft, "the draft model")
    drafters: list[ModelKit] = []
    kept_in = None if cache_dir is None else _cache_folder(cache_dir)
    check_mlx()
    ranks = None
    if launched() and not vocab_only:
        from engine.ranks.ranks import Ranks
        from engine.ranks.worker import check_ranked

        check_ranked(cache_dir=cache_dir, adapter=adapter, draft=draft, parallel=parallel > 1)
        ranks = Ranks()
    from engine.libraries import import_libraries

    def load_kit(check_open: Callable[[], None]) -> "ModelKit":
        def report(stage: str, done: int, total: int) -> None:
            check_open()
            if cancel is not None and cancel.is_set():
                raise EngineClosed("loading the model was cancelled")
            if progress is not None:
                progress(stage, done, total)

        from model_kit.blas import preload_openblas

        preload_openblas()
        from model_kit.hub import resolve

        folder = resolve(named, report)
        import_libraries(report)
        from model_kit.kit import load_model_kit

        kit = load_model_kit(
            folder,
            decoder_only=decoder_only,
            vocab_only=vocab_only,
            progress=report,
            add_on=add_on,
            group=None if ranks is None else ranks.group,
        )
        if ranks is not None:
            from engine.ranks.worker import check_same, facts_of

            check_same(ranks, facts_of(kit, decoder_only=decoder_only))
        if adapter is not None:
            kit.use_adapter(adapter)
        if drafting is not None and drafting != LOOKUP:
            from engine.drafting.drafts import check_draft

            folder = resolve(drafting, report)
            drafters.append(load_model_kit(folder, decoder_only=True, progress=report))
            check_draft(kit, drafters[0])
        return kit

    def remember(kit: "ModelKit") -> "Memory":
        from engine.memory.memory import Memory
        from model_kit.report import memory_there

        loaded = [one.report for one in (kit, *drafters)]
        weights = sum(report.decoder_bytes + report.vision_bytes for report in loaded)
        if memory_bytes is not None and memory_bytes < weights:
            raise OptionError(
                f"memory_bytes is {memory_bytes}, but the model's weights alone take {weights}; "
                "give more, or load a smaller model"
            )
        there = memory_there()
        share = int((there or 0) * CACHE_SHARE) if cache_bytes is None else cache_bytes
        most = there if memory_bytes is None else memory_bytes
        memory = Memory(kit, share, kept_in, cache_dir_bytes, most, parallel)
        if drafting is not None:
            from engine.drafting.drafts import Drafts

            memory.drafts = Drafts(drafters.pop() if drafters else None, memory)
        if ranks is not None:
            from engine.ranks.memory import share_memory

            share_memory(memory, kit, ranks)
        return memory

    if ranks is None:
        worker = Worker(load_kit, remember, parallel)
    else:
        from engine.ranks.worker import RankedWorker

        worker = RankedWorker(load_kit, remember, ranks)
        if not ranks.leads:
            worker.wait_until_loaded()
            worker.thread.join()
            raise SystemExit(0)
    try:
        return Engine(worker, worker.wait_until_loaded(), parallel)
    except BaseException:
        worker.close()
        raise


def _named(model: object, what: str) -> str | Path:
    name = file_name(model, what, CheckpointNotFound)
    return name if isinstance(model, str) else Path(name)


def _check_add_on(add_on: object) -> None:
    if add_on is None:
        return
    if isinstance(add_on, type):
        from vision_add_ons.base import VisionAddOn

        if issubclass(add_on, VisionAddOn):
            return
    raise OptionError("add_on must be a class, one made from VisionAddOn")


def _cache_folder(cache_dir: str | os.PathLike[str]) -> Path:
    """The folder, made if there is none. Raises `OptionError` for one that cannot be written."""
    name = file_name(cache_dir, "cache_dir", OptionError)
    try:
        folder = Path(name).expanduser().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"cache_dir {name!r:.200} is no folder that can be made: {error}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"cache_dir {folder} cannot be written to; give another folder")
    return folder
