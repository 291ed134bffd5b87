"""What an app hands in as data, written out as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from vision_add_ons.errors import OptionError


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
