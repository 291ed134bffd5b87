"""What may be written to a terminal: text, complaints of one line, and a bar."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from vision_add_ons.errors import SightlineError

_CONTROLS = {c: None for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}


def printable(text: str, out: TextIO) -> str:
    """The text, without control characters if `out` is a terminal, which would obey them."""
    return text.translate(_CONTROLS) if out.isatty() else text


def complain(problem: object) -> None:
    """One line on standard error. What was not made for showing gets its type's name."""
    text = " ".join(str(problem).split())
    if isinstance(problem, BaseException) and not isinstance(problem, SightlineError):
        text = f"{type(problem).__name__}: {text}"
    text = printable(f"sightline: {text}", sys.stderr)
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)  # above a bar that may be there
    else:
        print(text, file=sys.stderr, flush=True)


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())
        if record.exc_info and record.exc_info[1]:
            complain(record.exc_info[1])


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show the library's log: from warnings on, and to a person at a terminal its advice too."""
    log = logging.getLogger("sightline")
    level, handler = log.level, _OneLine(logging.WARNING)
    if sys.stderr.isatty():
        handler.setLevel(logging.INFO)
        log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class Thoughts:
    """What a model thinks, dimmed on standard error if that is a terminal; else left out."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._begun = False

    def __call__(self, text: str) -> None:
        if self._shown and text:
            self._begun = True
            sys.stderr.write(f"\x1b[2m{printable(text, sys.stderr)}\x1b[0m")
            sys.stderr.flush()

    def close(self) -> None:
        """What follows begins on a line of its own."""
        if self._begun:
            self._begun = False
            sys.stderr.write("\n")
            sys.stderr.flush()


class Bar:
    """The progress of one stage at a time, on standard error if that is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._shown = sys.stderr.isatty()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Stages that download or load count bytes, others count things."""
        if not self._shown:
            return
        if self._bar is None or stage != self._stage:
            from tqdm import tqdm

            self.close()
            self._stage = stage
            of_bytes = stage.startswith(("download", "load", "quantize", "convert", "fuse"))
            self._bar = tqdm(
                desc=stage,
                total=total,
                unit="B" if of_bytes else "",
                unit_scale=of_bytes,
                leave=False,
                dynamic_ncols=True,
                file=sys.stderr,
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Erase it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
