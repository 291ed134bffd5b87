"""A conversation's KV caches as a file that proves itself whole.

The form is that of mlx-lm's `save_prompt_cache`, which also reads it: the layers, then those of a
snapshot, where caches rotate. Beside them stand what the tokens are, which model made them, and a
SHA-256 of the whole file. A file is served as it was written or not at all.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mlx_lm.models.cache import (
    can_trim_prompt_cache,
    load_prompt_cache,
    save_prompt_cache,
)
from safetensors import SafetensorError, safe_open

from engine.memory.kv_state import Snapshot, arrays, kv_length, snapshot
from model_kit.files import replacing
from vision_add_ons.safetensors_files import evaluate
from vision_add_ons.token_ids import TokenIds

FORMAT = "sightline-kv-1"
SUFFIX = ".kv.safetensors"
MAX_TOKENS = 2**24
"""More than any model has positions: a file that claims more is no file of ours."""

_BLANK = "0" * 64
# The metadata's names are mlx-lm's, for entries of the dictionary that it is given.
_DIGEST = re.compile(rb'"0\.digest"\s*:\s*"([0-9a-f]{64})"')
_TRUSTED_CLASSES = {"KVCache", "RotatingKVCache", "QuantizedKVCache", "ArraysCache"}


class UnusableFile(Exception):
    """A file that is damaged, or that no engine with this model wrote."""


@dataclass(frozen=True)
class Contents:
    """What a file says about the caches in it; see `engine.memory.prompt_index.Stored`."""

    fingerprint: str
    key: Sequence[Hashable]
    variant: Hashable
    borders: tuple[int, ...]
    trims: bool
    least: int


def write(path: Path, contents: Contents, caches: Sequence[Any]) -> int:
    """Write the caches of all layers, then those of a snapshot for each border; bytes written.

    Any thread may do it, with caches that nobody changes (`kv_state.frozen`). `path` holds what it
    held before or all of this, at every moment. Raises OSError.
    """
    with replacing(path, ".safetensors") as temporary:
        note = {**vars(contents), "format": FORMAT, "key": _packed(contents.key)}
        try:
            entries = {"digest": _BLANK, "note": json.dumps(note)}
            save_prompt_cache(str(temporary), list(caches), entries)
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        return _sign(temporary)


def serves(kv: Sequence[Any]) -> bool:
    """Whether caches are of kinds that can be written and read again."""
    return {type(cache).__name__ for cache in kv} <= _TRUSTED_CLASSES


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
        evaluate(*arrays([c.state for c in caches]))
    except (RuntimeError, MemoryError) as error:  # no memory for it: no fault of the file's
        raise OSError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # mlx-lm trips over a wrong structure in many ways
        raise UnusableFile(f"its caches cannot be read ({error})") from error
    kv, rest = caches[:layers], caches[layers:]
    each = len(snapshot(kv))
    whole = len(kv) == layers and len(rest) == each * len(contents.borders)
    whole = whole and contents.trims == can_trim_prompt_cache(kv)
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
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for somebody to write
        raise OSError(f"{path} is no file")
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
        packed, variant, borders = (note.pop(name) for name in ("key", "variant", "borders"))
        if sum(1 if type(part) is int else part[1] for part in packed) > MAX_TOKENS:
            raise ValueError("too many tokens")
        key = _unpacked(packed)
        contents = Contents(
            key=key,
            variant=None if variant is None else tuple(variant),
            borders=tuple(borders),
            **note,
        )
        numbers = (*(variant or ()), *borders, contents.least)
        valid = len(key) > 0 and all(type(n) is int for n in numbers)
        valid = valid and all(0 < n < len(key) for n in borders)
        valid = valid and type(contents.trims) is bool
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
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


def _unpacked(packed: list[Any]) -> Sequence[Hashable]:
    if all(type(part) is int for part in packed):
        return TokenIds(packed)
    key: list[Hashable] = []
    for part in packed:
        if type(part) is int:
            key.append(part)
            continue
        digest, count = part
        if not isinstance(digest, str) or type(count) is not int or not count > 0:
            raise ValueError
        key += [digest] * count
    return tuple(key)
