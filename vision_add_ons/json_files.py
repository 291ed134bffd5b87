"""Reading the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from vision_add_ons.errors import BrokenConfig


def read_json(file: Path) -> dict[str, Any]:
    """Parse one JSON object. Raises `BrokenConfig`."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenConfig(f"{file} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise BrokenConfig(f"{file} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_json_if_there(file: Path) -> dict[str, Any]:
    """The same, or an empty object where there is no such file."""
    return read_json(file) if file.exists() else {}
