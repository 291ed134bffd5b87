"""What tells one model from another: a KV cache of one is worth nothing to any other."""

import hashlib
import inspect
import json
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vision_add_ons.base import VisionAddOn
from vision_add_ons.weights import weight_files

PACKAGES = ("sightline", "mlx", "mlx-lm", "mlx-vlm", "transformers")
"""Another version may compute something else."""

CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")

SAMPLE = 256
"""Bytes read at each of three places of a tensor."""


def fingerprint(folder: Path, add_on: type[VisionAddOn] | None) -> str:
    """A digest of a checkpoint and of the code that runs it, without reading the weights whole.

    Covered are the configs; of every file of weights its size, the time of its last change, its
    header, and three samples of each tensor; the sources of the add-on and of those that it
    derives from; the versions of the packages. Raises a `CheckpointError`, or OSError.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        for part in parts:
            raw = part if isinstance(part, bytes) else str(part).encode()
            digest.update(b"%d:" % len(raw) + raw)

    for package in PACKAGES:
        add(package, _version(package))
    for part in add_on.__mro__ if add_on is not None else ():
        if issubclass(part, VisionAddOn):
            add(part, _source(part))
    for name in CONFIGS:
        if (folder / name).is_file():
            add(name, (folder / name).read_bytes())
    for file in weight_files(folder):
        status = file.stat()
        add(file.name, status.st_size, status.st_mtime_ns, *_samples(file))
    return digest.hexdigest()


def _source(add_on: type[VisionAddOn]) -> bytes:
    try:
        source = inspect.getsourcefile(add_on)
    except (TypeError, OSError):
        # Typed in at a prompt: nothing tells whether the next one of that name is the same.
        return os.urandom(16)
    # A frozen application has no sources; its add-ons change with its packages' versions.
    return Path(source).read_bytes() if source is not None and Path(source).is_file() else b""


def _samples(file: Path) -> list[bytes]:
    """A safetensors file's header, and the beginning, middle and end of each tensor."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = opened.read(size)
        samples = [header]
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                for place in (start, (start + end) // 2, max(start, end - SAMPLE)):
                    count = min(SAMPLE, end - place)
                    samples.append(os.pread(opened.fileno(), count, 8 + size + place))
    return samples


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder, not installed
        return ""
