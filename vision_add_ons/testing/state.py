"""All that an add-on holds, so that a change of it shows."""

import enum
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from vision_add_ons.base import VisionAddOn

CODE = (type, FunctionType, ModuleType, staticmethod, classmethod, property)
PLAIN = (type(None), bool, int, float, str, bytes, enum.Enum, Path, mx.Dtype)


def state_of(add_on: VisionAddOn) -> dict[str, str]:
    """What each attribute holds, down to arrays' bytes: by its path, a text that tells it.

    Those of the classes count too: what lies there is every instance's.
    """
    found: dict[str, str] = {}
    seen: set[int] = set()
    _walk(vars(add_on), "self", found, seen)
    for cls in type(add_on).__mro__:
        if cls is VisionAddOn:
            break
        for name, value in vars(cls).items():
            if not name.startswith("__") and name != "_abc_impl":
                _walk(value, f"{cls.__name__}.{name}", found, seen)
    return found


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The paths at which two states differ."""
    return sorted(p for p in {*before, *after} if before.get(p) != after.get(p))


def _walk(value: Any, path: str, found: dict[str, str], seen: set[int]) -> None:
    if isinstance(value, PLAIN):
        found[path] = repr(value)
    elif isinstance(value, mx.array):
        raw = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
        found[path] = f"{value.dtype} {_digest(np.array(raw))}"
    elif isinstance(value, np.ndarray):
        found[path] = f"{value.dtype} {_digest(value)}"
    elif isinstance(value, CODE):
        found[path] = f"{type(value).__name__} {id(value)}"
    elif id(value) not in seen:
        seen.add(id(value))
        inner: dict[str, Any] = {}
        if isinstance(value, Mapping):
            inner |= {str(name): part for name, part in value.items()}
        elif isinstance(value, list | tuple):
            inner |= {str(i): part for i, part in enumerate(value)}
        elif isinstance(value, set | frozenset):
            found[path] = repr(sorted(map(repr, value)))
        if not isinstance(value, Mapping) or isinstance(value, nn.Module):
            inner |= getattr(value, "__dict__", {})
        found.setdefault(path, f"{type(value).__name__} of {len(inner)}")
        for name, part in inner.items():
            _walk(part, f"{path}.{name}", found, seen)


def _digest(array: np.ndarray) -> str:
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
