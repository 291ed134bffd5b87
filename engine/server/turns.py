"""A conversation as the server hands it on, whatever protocol it came by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shown:
    """A picture of a request that is not read yet."""

    url: str
    """A data URI, base64, or an address."""
    small: bool = False
    """Whether it is to be shrunk, for the client asked for little detail."""


@dataclass(frozen=True)
class Turn:
    """What becomes an `engine.prompts.messages.Message` when its pictures are read."""

    role: str
    parts: Sequence[str | Shown] = ()
    reasoning: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    tool_call_id: str | None = None
    name: str | None = None
