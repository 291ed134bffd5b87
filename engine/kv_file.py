"""A conversation's KV caches as a file that proves itself whole.

The form is that of mlx-lm's `save_prompt_cache`, which also reads it: the layers, then those of a
snapshot, where caches rotate. Beside them stand what the tokens are, which model made them, and a
SHA-256 of the whole file. A file is served as it was written or not at all.
"""

import hashlib
import json
import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache
from safetensors import SafetensorError, safe_open

from engine.kv_state import Snapshot, kv_length, snapshot
from model_kit.files import private_file, publish

FORMAT = "sightline-kv-1"
SUFFIX = ".kv.safetensors"

_BLANK = "0" * 64
# The metadata's names are mlx-lm's, for entries of the dictionary that it is given.
_DIGEST = re.compile(rb'"0\.digest"\s*:\s*"([0-9a-f]{64})"')
_TRUSTED_CLASSES = {"KVCache", "RotatingKVCache", "QuantizedKVCache"}


class UnusableFile(Exception):
    """A file that is damaged, or that no engine with this model wrote."""


@dataclass(frozen=True)
class Contents:
    """What a file says about the caches in it; see `engine.prompt_index.Stored`."""

    fingerprint: str
    key: list[Hashable]
    variant: Hashable
    borders: tuple[int, ...]
    trims: bool
    least: int


def write(path: Path, contents: Contents, caches: Sequence[Any]) -> int:
    """Write the caches of all layers, then those of a snapshot for each border; bytes written.

    Any thread may do it, with caches that nobody changes (`engine.kv_state.frozen`). `path` holds
    what it held before or all of this, at every moment. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.tmp.safetensors")
    private_file(temporary)
    try:
        note = {**vars(contents), "format": FORMAT, "key": _packed(contents.key)}
        try:
            entries = {"digest": _BLANK, "note": json.dumps(note)}
            save_prompt_cache(str(temporary), list(caches), entries)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        size = _sign(temporary)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def describe(path: Path, fingerprint: str) -> Contents:
    """What a file says that it holds, before anything of it is believed.

    Raises `UnusableFile`, or OSError.
    """
    return _contents(_metadata(path), fingerprint)


def read(
    path: Path, fingerprint: str, layers: int
) -> tuple[Contents, list[Any], dict[int, Snapshot]]:
    """The caches of a whole file, in memory, and its snapshots by their lengths.

    Call it on the engine's thread. Raises `UnusableFile`, or OSError.
    """
    with path.open("rb") as file:
        told, found = _digests(file)
    metadata = _metadata(path)
    if found != told or metadata.get("0.digest") != told:
        raise UnusableFile("it is damaged: its SHA-256 is not the one that it was written with")
    contents = _contents(metadata, fingerprint)
    classes = {value for name, value in metadata.items() if re.fullmatch(r"1\.\d+", name)}
    if not classes <= _TRUSTED_CLASSES:
        raise UnusableFile(f"it holds caches of an unknown kind: {sorted(classes)}")
    try:
        caches, again = load_prompt_cache(str(path), return_metadata=True)
        mx.eval([c.state for c in caches])
    except Exception as error:  # mlx-lm trips over a wrong structure in many ways
        raise UnusableFile(f"its caches cannot be read ({error})") from error
    kv, rest = caches[:layers], caches[layers:]
    each = len(snapshot(kv))
    whole = len(kv) == layers and len(rest) == each * len(contents.borders)
    if not whole or again.get("digest") != told or kv_length(kv) != len(contents.key):
        raise UnusableFile("it does not hold what it says")
    states = [c.state for c in rest]
    snapshots = {n: states[i * each : (i + 1) * each] for i, n in enumerate(contents.borders)}
    return contents, kv, snapshots


def _sign(path: Path) -> int:
    """Put the file's digest in its place; its size. Raises OSError if it is not whole."""
    try:
        _metadata(path)
    except UnusableFile as error:  # a disk that is full does not always say so
        raise OSError(f"{path} was not written whole: {error}") from error
    with path.open("r+b") as file:
        _, digest = _digests(file)
        match = _place_of_digest(file)
        file.seek(8 + match.start(1))
        file.write(digest.encode())
        return file.seek(0, os.SEEK_END)


def _digests(file: Any) -> tuple[str, str]:
    """The digest that a file carries, and that of all of it with zeros in its place."""
    match = _place_of_digest(file)
    start = 8 + match.start(1)
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(start) + _BLANK.encode())
    file.seek(start + len(_BLANK))
    while block := file.read(1 << 22):
        digest.update(block)
    return match[1].decode(), digest.hexdigest()


def _place_of_digest(file: Any) -> re.Match[bytes]:
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    if size > os.fstat(file.fileno()).st_size:
        raise UnusableFile("it is cut off")
    match = _DIGEST.search(file.read(size))
    if match is None:
        raise UnusableFile("it carries no digest of itself")
    return match


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a file whose header fits its size. Raises `UnusableFile` or OSError."""
    path.stat()  # safetensors has an error of its own for what is not there
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UnusableFile(f"it is no whole safetensors file ({error})") from error


def _contents(metadata: dict[str, str], fingerprint: str) -> Contents:
    try:
        note = json.loads(metadata["0.note"])
        if note.pop("format") != FORMAT:
            raise UnusableFile("it has a form of another version")
        key = [part for packed in note.pop("key") for part in _unpacked(packed)]
        variant = note.pop("variant")
        contents = Contents(
            key=key,
            variant=None if variant is None else tuple(int(n) for n in variant),
            borders=tuple(int(n) for n in note.pop("borders")),
            **note,
        )
        valid = len(key) > 0 and all(0 < n < len(key) for n in contents.borders)
        valid &= type(contents.least) is int and type(contents.trims) is bool
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UnusableFile("it does not say what it holds") from error
    if not valid:
        raise UnusableFile("it does not say what it holds")
    if contents.fingerprint != fingerprint:
        raise UnusableFile("another model, or another version of this software, wrote it")
    return contents


def _packed(key: Sequence[Hashable]) -> list[Any]:
    """Ids as they are, and a picture's digest once with its number of tokens."""
    packed: list[Any] = []
    for part, run in groupby(key):
        count = sum(1 for _ in run)
        packed += [part] * count if isinstance(part, int) else [[part, count]]
    return packed


def _unpacked(part: Any) -> list[Hashable]:
    if type(part) is int:
        return [part]
    digest, count = part
    if not isinstance(digest, str) or type(count) is not int or not 0 < count < 2**24:
        raise ValueError
    return [digest] * count
