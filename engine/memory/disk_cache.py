"""KV caches in files: in a folder that outlives the process, and wherever a chat is saved."""

import logging
import os
import re
import uuid
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.memory import kv_file
from engine.memory.disk_writer import DiskWriter, Write
from engine.memory.kv_file import SUFFIX, Contents, UnusableFile
from engine.memory.kv_state import Snapshot, as_caches, fit, frozen, nbytes
from engine.memory.prompt_index import PromptIndex, Stored
from model_kit.files import UNFINISHED, remove_leftovers
from vision_add_ons.errors import OptionError

log = logging.getLogger("sightline")

MAX_WAITING = 2
"""Conversations that wait to be written while others go on; more are let go unwritten."""

# Nothing else in the user's folder is ours, to count or to remove.
_FOLDER = re.compile("[0-9a-f]{32}")
_FILE = re.compile("[0-9a-f]{32}" + re.escape(SUFFIX))


class Writable(Stored, Protocol):
    """A conversation in memory."""

    kv: list[Any]
    snapshots: dict[int, Snapshot]
    file: "StoredFile | None"


@dataclass(eq=False)
class StoredFile:
    """A KV cache in a file; see `engine.memory.prompt_index.Stored`."""

    path: Path
    contents: Contents
    replaceable: bool
    """Whether the next state of its conversation takes its place: not a user's file, nor one that
    a conversation has taken already."""
    written: "Future[int] | None" = field(default=None, repr=False)
    """The write that makes it, if it was made since the engine was loaded."""

    @property
    def key(self) -> Sequence[Hashable]:
        return self.contents.key

    @property
    def variant(self) -> Hashable:
        return self.contents.variant

    @property
    def borders(self) -> tuple[int, ...]:
        return self.contents.borders

    @property
    def trims(self) -> bool:
        return self.contents.trims

    @property
    def least(self) -> int:
        return self.contents.least

    @property
    def failed(self) -> bool:
        """Whether it was to be written, and was not."""
        done = self.written
        if done is None or not done.done():
            return False
        return done.exception() is not None or not done.result()


def _written_borders(entry: "Writable") -> tuple[int, ...]:
    """The borders that go with a file: each takes all sliding windows, or states, once more.

    The latest, and those before it as long as all of them double the file at most.
    """
    borders: list[int] = []
    room = nbytes(entry.kv, {})
    for border in sorted(entry.borders, reverse=True):
        room -= nbytes((), {border: entry.snapshots[border]})
        if borders and room < 0:
            break
        borders.append(border)
    return tuple(reversed(borders))


class DiskCache:
    """The files of one model. Its folder is shared: other models' and processes' lie there too.

    Its methods are for the engine's thread; its figures are for any.
    """

    def __init__(
        self,
        folder: Path | None,
        max_bytes: int,
        fingerprint: str,
        layers: int,
        writer: DiskWriter,
    ) -> None:
        """Find what `folder` has for this model; None keeps only what is saved by name.

        Raises `OptionError` for a folder that cannot be used.
        """
        self.max_bytes = max_bytes if folder is not None else 0
        self._root = folder
        self._folder: Path | None = None
        self._fingerprint = fingerprint
        self._layers = layers
        self.index: PromptIndex[StoredFile] = PromptIndex()
        """The files that are known."""
        self._named: dict[Path, StoredFile] = {}
        """Files of the user's."""
        self._writer = writer
        if folder is None or not layers:
            return
        self._folder = folder / fingerprint[:32]
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_leftovers(self._folder)
            found = sorted(path for path in self._folder.iterdir() if _FILE.fullmatch(path.name))
        except OSError as error:
            raise OptionError(f"cache_dir {folder} cannot be used: {error}") from error
        for path in found:
            stored = self._describe(path, replaceable=True)
            if stored is not None:
                self.index.add(stored)
        self._writer.start()

    def add(self, path: Path) -> None:
        """Know a file of the user's, if there is one; one that cannot be used is removed."""
        known = self._named.pop(path, None)
        if known is not None:
            self.forget(known)
        stored = self._describe(path, replaceable=False) if self._layers else None
        if stored is not None:
            self._named[path] = stored
            self.index.add(stored)

    def load(self, stored: StoredFile) -> tuple[list[Any], dict[int, Snapshot]] | None:
        """The caches and snapshots of a file; None if it is gone or no longer what it was.

        What cannot be used is removed, with a warning.
        """
        if stored.written is not None:
            stored.written.exception()  # wait for it
        try:
            told, kv, snapshots = kv_file.read(stored.path, self._fingerprint, self._layers)
            if told == stored.contents:
                with suppress(OSError):
                    os.utime(stored.path)  # the most recently used
                return kv, snapshots
        except (UnusableFile, OSError) as error:
            _complain(stored.path, error)
        self.forget(stored)
        return None

    def keep(self, entry: Writable, at_leisure: bool = True) -> None:
        """Have the folder hold a conversation as it is now, in place of what it held of it.

        `at_leisure`, what the disk cannot keep up with is let go; else the write is waited for.
        """
        before = entry.file
        if self._folder is None or not kv_file.serves(entry.kv):
            return
        if before is not None and before.key == entry.key and not before.failed:
            return
        if at_leisure and self._writer.waiting >= MAX_WAITING:
            return
        path = self._folder / f"{uuid.uuid4().hex}{SUFFIX}"
        if before is not None:
            path = before.path
            self.forget(before)
        contents, write = self.prepare(path, entry)
        size = nbytes(entry.kv, entry.snapshots)

        def bounded() -> int:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # may be tidied away
                if not self._make_room(path, size):
                    return 0
                written = write()
                if self._make_room(path, written):  # what it says of them has come on top
                    return written
                path.unlink(missing_ok=True)
                return 0
            except OSError as error:
                log.warning("a conversation is not kept: %s", error)
                raise

        stored = entry.file = StoredFile(path, contents, replaceable=False)
        stored.written = self._writer.submit(bounded)
        self.index.add(stored)
        if not at_leisure:
            stored.written.exception()

    def prepare(self, path: Path, entry: Writable) -> tuple[Contents, Write]:
        """What a file of a conversation says, and what writes it as it is now, on any thread.

        Cuts its caches to the tokens that they hold: a file takes no more.
        """
        borders = () if entry.trims else _written_borders(entry)
        contents = Contents(
            self._fingerprint, entry.key, entry.variant, borders, entry.trims, entry.least
        )
        fit(entry.kv, spare=0)
        caches = frozen(entry.kv)
        for border in borders:
            caches += as_caches(entry.kv, entry.snapshots[border])
        return contents, lambda: kv_file.write(path, contents, caches)

    def submit(self, write: Write, future: "Future[int]") -> None:
        """Have the writer's thread do something in its turn."""
        self._writer.submit(write, future)

    def __len__(self) -> int:
        """Conversations of this model in the folder."""
        paths = (path for *_, path in self._files() if path.parent == self._folder)
        return sum(1 for path in paths if _FILE.fullmatch(path.name))

    @property
    def nbytes(self) -> int:
        """Bytes of all files in the folder."""
        return sum(size for _, size, _ in self._files())

    @property
    def bytes_written(self) -> int:
        """Bytes written since the engine was loaded."""
        return self._writer.bytes_written

    def _describe(self, path: Path, replaceable: bool) -> StoredFile | None:
        try:
            contents = kv_file.describe(path, self._fingerprint)
        except (UnusableFile, OSError) as error:
            _complain(path, error)
            return None
        return StoredFile(path, contents, replaceable)

    def forget(self, stored: StoredFile) -> None:
        """Look for a file no longer."""
        with suppress(KeyError, ValueError):  # forgotten already
            self.index.remove(stored)

    def _make_room(self, path: Path, nbytes: int) -> bool:
        """Remove the least recently used until `nbytes` fit; on the writer's thread.

        Files of other models and processes count, and go, like our own. Whoever still knows one
        finds it gone.
        """
        if nbytes > self.max_bytes:
            return False
        others = sorted(file for file in self._files() if file[2] != path)
        total = sum(size for _, size, _ in others)
        for _, size, other in others:
            if total + nbytes <= self.max_bytes:
                break
            other.unlink(missing_ok=True)
            total -= size
        return True

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every file of ours in the folder, whole or not."""
        found = []
        with suppress(OSError):
            folders = list(self._root.iterdir()) if self._root is not None else []
            for folder in folders:
                if not _FOLDER.fullmatch(folder.name):
                    continue
                for path in folder.iterdir():
                    if _FILE.fullmatch(path.name) or UNFINISHED.fullmatch(path.name):
                        with suppress(OSError):
                            status = path.stat()
                            found.append((status.st_mtime, status.st_size, path))
        return found


def _complain(path: Path, error: Exception) -> None:
    """Warn, and remove the file if the fault is its own; say nothing of one that is not there."""
    if isinstance(error, FileNotFoundError):
        return
    if isinstance(error, UnusableFile):
        log.warning("the prompt cache in %s is not used: %s; it is removed", path, error)
        with suppress(OSError):
            path.unlink(missing_ok=True)
    else:
        log.warning("the prompt cache in %s cannot be read now: %s", path, error)
