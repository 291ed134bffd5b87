"""A changed checkpoint becomes a folder of its own: whole, tried, or not there at all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from model_kit.decoder import Progress
from model_kit.files import replacing_folder, write_json
from model_kit.kit import open_model_kit
from model_kit.safetensors_writer import write_safetensors
from vision_add_ons.configs import checkpoint_name
from vision_add_ons.errors import OptionError, SaveError
from vision_add_ons.safetensors_files import read_header
from vision_add_ons.weights import INDEX, weight_files

SHARD_BYTES = 5 * 10**9
"""The most that one file of weights holds, unless a single tensor is larger."""

# What comes along from the source beside config and weights.
COMPANIONS = (".json", ".jinja", ".model", ".txt", ".md", ".tiktoken")
NAMED_COMPANIONS = ("LICENSE", "NOTICE", "README", "USE_POLICY")


def check_target(source: Path, target: Path, overwrite: bool) -> Path:
    """The absolute path of a folder that may be made. Raises `SaveError`.

    With `overwrite`, a checkpoint folder that is there already may be replaced.
    """
    try:
        source, target = source.expanduser(), target.expanduser().absolute()
        here, there = source.resolve(), target.resolve()
        homes = {here, *(file.resolve() for file in here.glob("*"))}  # files may be links
        if here in there.parents or any(there in (home, *home.parents) for home in homes):
            raise SaveError(
                f"{target} and the source {source} lie in one another; give a folder "
                "elsewhere: a source is never written to"
            )
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise SaveError(f"{target} is there and is no folder; give another name")
        if target.is_dir() and any(target.iterdir()):
            if not overwrite:
                raise SaveError(
                    f"{target} is there already; give another name, or have it overwritten"
                )
            if not _is_checkpoint(target):
                raise SaveError(f"{target} is no checkpoint, so it is not overwritten")
        if there == Path.cwd().resolve():
            raise SaveError(f"{target} is the working folder; give another name")
    except (OSError, ValueError, RuntimeError) as error:
        raise SaveError(f"{target} is no folder that can be made: {error}") from error
    return target


def _is_checkpoint(folder: Path) -> bool:
    """Whether it looks like something that was made here: config and weights, and no folders."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    weights = any(name.endswith(".safetensors") for name in names)
    return "config.json" in names and weights and not any(p.is_dir() for p in folder.iterdir())


def save_checkpoint(
    source: Path,
    target: Path,
    config: dict[str, Any],
    tensors: dict[str, mx.array],
    *,
    overwrite: bool = False,
    texts: dict[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    stage: str = "write",
    progress: Progress | None = None,
) -> int:
    """Write a checkpoint folder, and return the bytes of its weights.

    `tensors` may be lazy and is emptied on the way: one at a time is computed and written. Of
    `source`, tokenizer, processor and licence files come along; `texts` are further files by their
    names. The folder is opened for a try before it takes its name. `progress(stage, done, total)`
    counts bytes, and may raise.

    Raises `SaveError`, or a `CheckpointError` for a source that cannot be read on or a result that
    could not be loaded; then nothing is left, and a folder that was there stays.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    companions = companion_files(source)
    # By their names some families tell an instruct model, which is prompted in another way.
    config = {"_name_or_path": checkpoint_name(source), **config}
    if type(shard_bytes) is not int or shard_bytes < 1:
        raise OptionError(f"shard_bytes must be a number of bytes, not {shard_bytes!r}")
    done = 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(stage, done, total)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target, total + sum(file.stat().st_size for file in companions))
        with replacing_folder(target, overwrite) as work:
            for file in companions:
                shutil.copyfile(file, work / file.name)
            for name, text in (texts or {}).items():
                (work / name).write_text(text, encoding="utf-8")
            write_json(work / "config.json", config)
            _write_weights(work, tensors, _metadata(source), shard_bytes, written)
            open_model_kit(work)
            check_target(source, target, overwrite)  # it may have become another
    except OSError as error:
        raise SaveError(
            f"{target} cannot be written: {error.strerror or error}; nothing of it was left, and "
            "what was there is as it was"
        ) from error
    return total


def companion_files(source: Path) -> list[Path]:
    """The files of a checkpoint that belong to it beside config and weights."""
    return sorted(
        path
        for path in source.iterdir()
        if path.is_file()
        and path.name not in ("config.json", INDEX)
        and not path.name.startswith(".")
        and (path.suffix in COMPANIONS or path.name.startswith(NAMED_COMPANIONS))
        and not path.name.endswith(".index.json")
    )


def _write_weights(
    folder: Path,
    tensors: dict[str, mx.array],
    metadata: dict[str, str],
    shard_bytes: int,
    written: Callable[[int], None],
) -> None:
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[list[str]] = []
    size = 0
    for name, tensor in tensors.items():
        if not shards or size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        shard = {name: tensors.pop(name) for name in names}
        write_safetensors(folder / file, shard, metadata, written)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def _metadata(source: Path) -> dict[str, str]:
    """The source's own: some loaders read from it how far the names have been converted."""
    found = read_header(weight_files(source)[0]).get("__metadata__") or {}
    return {"format": str(found.get("format", "pt"))}


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise SaveError(
            f"{target} needs {needed / 1e9:.2f} GB, and {target.parent} has {free / 1e9:.2f} GB "
            "free; free some space or give another disk"
        )
