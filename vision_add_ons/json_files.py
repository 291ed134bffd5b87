"""Reading the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from vision_add_ons.errors import BrokenConfig


def read_json(file: Path) -> dict[str, Any]:
    """Parse one JSON object. Raises `BrokenConfig`."""
    try:
        value = parse_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenConfig(f"{file} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise BrokenConfig(f"{file} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_json_if_there(file: Path) -> dict[str, Any]:
    """The same, or an empty object where there is no such file."""
    return read_json(file) if file.exists() else {}


def parse_json(file: Path) -> Any:
    """Whatever a regular file holds. Raises OSError, ValueError or RecursionError.

    A name that is given twice, with different values, is an error: readers take the last.
    """
    if file.exists() and not file.is_file() and not file.is_dir():
        # To open a pipe would wait for whoever writes to it.
        raise OSError("it is a pipe or a device")
    return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unambiguous)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object none of whose names is given twice. Raises ValueError."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:99]!r} is given twice")
    return value


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The same, but what is given twice may be given twice alike."""
    value = dict(pairs)
    if len(value) == len(pairs) or all(value[name] == given for name, given in pairs):
        return value
    return each_once(pairs)
