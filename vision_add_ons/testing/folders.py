"""A checkpoint folder once more, with some of it changed."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from vision_add_ons.testing.reference import REMOVED


def changed_folder(
    folder: Path,
    target: Path,
    changes: Mapping[str, Any],
    tensors: Mapping[str, mx.array] | None = None,
) -> Path:
    """Bring the files of `folder` to `target`, with other values in JSON files, or other weights.

    `changes` maps paths (see `Refused.path`) to values.
    """
    target.mkdir(parents=True)
    by_file: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        file, _, field = path.rpartition("/")
        by_file.setdefault(file or "config.json", {})[field] = value
    for source in folder.iterdir():
        weights = source.name.endswith((".safetensors", ".safetensors.index.json"))
        if source.name not in by_file and not (weights and tensors is not None):
            # Never a link to what may be written over.
            (os.link if weights else shutil.copy)(source, target / source.name)
    for name, fields in by_file.items():
        source = folder / name
        content = json.loads(source.read_text()) if source.exists() else {}
        for field, value in fields.items():
            put(content, field, value)
        (target / name).write_text(json.dumps(content))
    if tensors is not None:
        mx.save_safetensors(str(target / "model.safetensors"), dict(tensors), {"format": "pt"})
    return target


def put(content: dict[str, Any], path: str, value: Any) -> None:
    """Set, or with `REMOVED` take away, what a dotted path names in nested objects."""
    *outer, last = path.split(".")
    for name in outer:
        inner = content.get(name)
        if not isinstance(inner, dict):
            inner = content[name] = {}
        content = inner
    if value is REMOVED:
        content.pop(last, None)
    else:
        content[last] = value


def tensors_of(folder: Path) -> dict[str, mx.array]:
    """All tensors of a checkpoint that the kit's references wrote."""
    tensors: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(mx.load(str(file)))  # type: ignore[arg-type]
    return tensors
