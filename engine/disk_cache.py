"""KV caches in files: in a folder that outlives the process, and wherever a chat is saved."""

import logging
import os
import time
import uuid
from collections.abc import Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine import kv_file
from engine.disk_writer import DiskWriter, Write
from engine.kv_file import SUFFIX, Contents, UnusableFile
from engine.kv_state import Snapshot, as_caches, frozen
from engine.prompt import Prompt
from engine.prompt_index import PromptIndex, Stored

log = logging.getLogger("sightline")

MAX_WAITING = 2
"""Conversations that wait to be written while others go on; more are let go unwritten."""

LEFTOVER_SECONDS = 3600
"""The age from which on an unfinished file belongs to no process that still writes it."""


class Writable(Stored, Protocol):
    """A conversation in memory."""

    kv: list[Any]
    snapshots: dict[int, Snapshot]
    file: "StoredFile | None"
    nbytes: int


@dataclass(eq=False)
class StoredFile:
    """A KV cache in a file; see `engine.prompt_index.Stored`."""

    path: Path
    key: list[Hashable]
    variant: Hashable
    borders: tuple[int, ...]
    trims: bool
    least: int
    replaceable: bool
    """Whether the next state of its conversation takes its place: not a user's file, nor one that
    a conversation has taken already."""
    written: "Future[int] | None" = field(default=None, repr=False)
    """There while it may still be under way."""


class DiskCache:
    """The files of one model. Its folder is shared: other models' and processes' lie there too.

    Its methods are for the engine's thread; its figures are for any.
    """

    def __init__(self, folder: Path | None, max_bytes: int, fingerprint: str, layers: int) -> None:
        """Find what `folder` has for this model; None keeps only what is saved by name."""
        self._root = folder
        self._folder = None if folder is None else folder / fingerprint[:32]
        self.max_bytes = max_bytes if folder is not None else 0
        self._fingerprint = fingerprint
        self._layers = layers
        self._index: PromptIndex[StoredFile] = PromptIndex()
        self._writer = DiskWriter()
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
            for path in sorted(self._folder.glob(f"[!.]*{SUFFIX}")):
                self.add(path, replaceable=True)

    def add(self, path: Path, replaceable: bool = False) -> None:
        """Know a file, if there is one. What cannot be used is removed, with a warning."""
        try:
            told = kv_file.describe(path, self._fingerprint)
        except FileNotFoundError:
            return
        except (UnusableFile, OSError) as error:
            _discard(path, error)
            return
        found = (told.key, told.variant, told.borders, told.trims, told.least)
        self._index.add(StoredFile(path, *found, replaceable))

    def longest(
        self, prompt: Prompt, variant: Hashable, beyond: int
    ) -> tuple[StoredFile | None, int]:
        """The file that serves most of a prompt, if that is more than `beyond` tokens."""
        return self._index.longest(prompt, variant, beyond)

    def load(self, stored: StoredFile) -> tuple[list[Any], dict[int, Snapshot]] | None:
        """The caches and snapshots of a file; None if it is gone or no longer what it was.

        What cannot be used is removed, with a warning.
        """
        if stored.written is not None:
            stored.written.exception()  # wait for it
        try:
            told, kv, snapshots = kv_file.read(stored.path, self._fingerprint, self._layers)
            if told.key == stored.key and told.variant == stored.variant:
                with suppress(OSError):
                    os.utime(stored.path)  # the most recently used
                return kv, snapshots
        except FileNotFoundError:
            pass
        except (UnusableFile, OSError) as error:
            _discard(stored.path, error)
        self._index.remove(stored)
        return None

    def keep(self, entry: Writable, at_leisure: bool = True) -> None:
        """Have the folder hold a conversation as it is now, in place of what it held of it.

        `at_leisure`, what the disk cannot keep up with is let go.
        """
        before = entry.file
        if self._folder is None or (before is not None and before.key == entry.key):
            return
        if at_leisure and self._writer.waiting >= MAX_WAITING:
            return
        if before is None:
            path = self._folder / f"{uuid.uuid4().hex}{SUFFIX}"
        else:
            path = before.path
            with suppress(KeyError, ValueError):  # found damaged meanwhile
                self._index.remove(before)
        borders = _borders(entry)
        now = (entry.key, entry.variant, borders, entry.trims, entry.least)
        stored = StoredFile(path, *now, replaceable=False)
        write, size = self.write(path, entry), entry.nbytes

        def bounded() -> int:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # may be tidied away
                return write() if self._make_room(path, size) else 0
            except OSError as error:
                log.warning("a conversation is not kept: %s", error)
                raise

        stored.written = self._writer.submit(bounded)
        self._index.add(stored)
        entry.file = stored

    def submit(self, write: Write, future: "Future[int]") -> None:
        """Have the writer's thread do something; `future` gets its result or its error."""
        self._writer.submit(write, future)

    def close(self) -> None:
        """Wait until everything is written."""
        self._writer.close()

    def __len__(self) -> int:
        """Conversations of this model that lie in files."""
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of all files in the folder."""
        return sum(size for _, size, _ in self._files())

    @property
    def bytes_written(self) -> int:
        """Bytes written since the engine was loaded."""
        return self._writer.bytes_written

    def write(self, path: Path, entry: Writable) -> Write:
        """What has the caches written to `path`, as they are now, wherever it is called."""
        borders = _borders(entry)
        now = (entry.key, entry.variant, borders, entry.trims, entry.least)
        contents = Contents(self._fingerprint, *now)
        caches = frozen(entry.kv)
        for border in borders:
            caches += as_caches(entry.kv, entry.snapshots[border])
        return lambda: kv_file.write(path, contents, caches)

    def _make_room(self, path: Path, nbytes: int) -> bool:
        """Remove the least recently used until `nbytes` fit; on the writer's thread.

        Files of other models and processes count, and go, like our own. Whoever still knows one
        finds it gone.
        """
        others = sorted(file for file in self._files() if file[2] != path)
        total = sum(size for _, size, _ in others)
        if nbytes > self.max_bytes:
            return False
        for _, size, other in others:
            if total + nbytes <= self.max_bytes:
                break
            other.unlink(missing_ok=True)
            total -= size
        return True

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file in the folder, unfinished ones too."""
        found = []
        for path in self._root.glob("*/*.safetensors") if self._root is not None else ():
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _sweep(self) -> None:
        """Remove what killed processes left unfinished."""
        for changed, _, path in self._files():
            if path.name.startswith(".") and changed < time.time() - LEFTOVER_SECONDS:
                path.unlink(missing_ok=True)


def _borders(entry: Stored) -> tuple[int, ...]:
    """The latest alone goes with a file: each takes all sliding windows once more."""
    return () if entry.trims else tuple(sorted(entry.borders)[-1:])


def _discard(path: Path, error: Exception) -> None:
    log.warning("the prompt cache in %s is not used: %s; it is removed", path, error)
    with suppress(OSError):
        path.unlink(missing_ok=True)
