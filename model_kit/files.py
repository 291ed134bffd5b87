"""Files and folders that are there whole or not at all, whenever machine or process stops."""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.unfinished(\.\w+)?")
"""How files under way are called."""

LEFTOVER_SECONDS = 3600
"""The age from which on an unfinished file belongs to no process that still writes it."""


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or a folder's list of names.

    Not every file system can do that for a folder; there, nothing more can be done.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """As people read it. Raises OSError."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """An empty file for this user alone, whose content takes the place of `path` in the end.

    If the block raises, it is removed, and `path` stays as it is. What killed processes left
    beside `path` is removed too. Every writer has a file of its own. Raises OSError.
    """
    remove_leftovers(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}.unfinished{suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def replacing_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder, which becomes `path` in the end.

    A folder that is there then, and is not empty, is an error, or with `overwrite`
    replaced. If the block raises, it is removed, and what was there stays. Raises OSError.
    """
    remove_leftovers(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    temporary.mkdir()
    try:
        yield temporary
        for file in (*temporary.iterdir(), temporary):
            sync(file)
        _put_in_place(temporary, path, overwrite)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def _put_in_place(new: Path, path: Path, overwrite: bool) -> None:
    if not overwrite or not path.exists():
        os.rename(new, path)
        return
    # By a name that says what it is: it must survive an end between the two renames.
    previous = path.with_name(f"{path.name}.previous-{uuid.uuid4().hex[:8]}")
    os.rename(path, previous)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(previous, path)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder."""
    for path in folder.iterdir():
        if UNFINISHED.fullmatch(path.name):
            with suppress(OSError):
                inside = path.iterdir() if path.is_dir() else ()
                changed = max(p.stat().st_mtime for p in (path, *inside))
                if changed < time.time() - LEFTOVER_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
