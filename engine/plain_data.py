"""What an app hands in as data, written out as JSON."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vision_add_ons.errors import OptionError

MOST_DEPTH = 100
"""Levels that data may be nested, at most. How many Python itself reads, writes and compares is
another number in each of its versions."""


def as_plain(value: Any) -> Any:
    """For `json.dumps`: mappings that are no dict, and sequences that are no list."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def check_characters(what: str, text: str) -> None:
    """Raises `OptionError` for a text that cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{what} holds half a character") from error


def depth_of(written: str) -> int:
    """How deep JSON is nested, outside its texts."""
    depth = most = 0
    for bracket in re.findall(r"[\[{}\]]", re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"', "", written)):
        depth += 1 if bracket in "[{" else -1
        most = max(most, depth)
    return most
