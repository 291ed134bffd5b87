"""What the kit uses of an engine. It is handed in, so that this package imports none."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from vision_add_ons.base import VisionAddOn


class Answering(Protocol):
    """An answer under way: its events in order, and the last of them."""

    def __iter__(self) -> Iterator[Any]: ...

    def result(self) -> Any: ...


class LoadedEngine(Protocol):
    """A loaded checkpoint: `engine.Engine`."""

    options_class: Any

    def generate(self, prompt: Sequence[Any], images: Any = (), options: Any = None) -> Answering:
        """Answer token ids or messages."""

    def close(self) -> None: ...


class Load(Protocol):
    """What opens a checkpoint folder: `engine.load`."""

    def __call__(
        self,
        model: Path,
        *,
        decoder_only: bool = False,
        add_on: type[VisionAddOn] | None = None,
        parallel: int = 1,
    ) -> LoadedEngine: ...


def tokens_of(events: Iterable[Any]) -> list[Any]:
    """The events that tell a token, with its id and the likeliest tokens in its place."""
    return [event for event in events if getattr(event, "token", None) is not None]
