"""An answer while it is made, and in figures when it is there."""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from typing import Any, TextIO

from engine.cli.terminal import Bar, Thoughts, printable
from engine.events import Event, Finished, Progress, TextDelta
from engine.generation import Generation

LONG_PREFILL_TOKENS = 1024
LONG_PREFILL_SECONDS = 1.0


def show_answer(ask: Callable[[], Generation], out: TextIO | None) -> Finished:
    """Print an answer as it comes, to `out` if there is one, and what the model thinks before it to
    a terminal alone. Ctrl-C cancels the answer.

    What else is printed meanwhile (mlx-lm prints some warnings) goes to standard error.
    """
    generation: Generation | None = None
    interrupted = False

    def interrupt(*_: object) -> None:
        # In place of KeyboardInterrupt, which strikes anywhere and may lose the event just fetched.
        nonlocal interrupted
        interrupted = True
        if generation is not None:
            generation.cancel()

    before = signal.signal(signal.SIGINT, interrupt)
    started = time.monotonic()
    try:
        with redirect_stdout(sys.stderr), closing(Bar()) as bar, closing(Thoughts()) as think:
            generation = ask()
            if interrupted:
                generation.cancel()
            for event in generation:
                _show_prefill(bar, event, started)
                if isinstance(event, Finished):
                    return event
                if isinstance(event, TextDelta) and out is not None:
                    think(event.reasoning)
                if out is not None and event.text:
                    think.close()
                    out.write(printable(event.text, out))
                    out.flush()
    finally:
        if generation is not None and not generation.done:
            generation.cancel()  # nobody reads it any more
        signal.signal(signal.SIGINT, before)
    raise AssertionError("a generation ended without its final event")


def _show_prefill(bar: Bar, event: Event, started: float) -> None:
    """A bar while a long prompt is read, gone before the text."""
    # The last token of a prompt runs together with the first of the answer.
    if not isinstance(event, Progress) or event.processed >= event.total - 1:
        bar.close()
    elif event.total > LONG_PREFILL_TOKENS or time.monotonic() - started > LONG_PREFILL_SECONDS:
        bar("read prompt", event.processed, event.total)


def summary(end: Finished) -> str:
    """An answer's figures in one line."""
    first = end.time_to_first_token
    disk = f", {end.disk_tokens} of them from disk" if end.disk_tokens else ""
    thought = f" ({end.reasoning_tokens} of them thought)" if end.reasoning_tokens else ""
    drafted = f", {end.drafted_tokens} of them drafted" if end.drafted_tokens else ""
    return (
        f"{end.prompt_tokens} prompt tokens ({end.cached_tokens} cached{disk}), "
        f"{end.images_encoded} images encoded and {end.images_reused} reused, "
        + (f"first token after {first:.2f} s, " if first is not None else "no token, ")
        + f"{end.completion_tokens} tokens{thought}{drafted} at "
        f"{end.tokens_per_second:.1f} tokens/s, finish reason {end.finish_reason}"
    )


WITHOUT = ("text", "tokens", "answer_tokens")
"""What is of no use to scripts."""


def as_json(end: Finished) -> dict[str, Any]:
    """An answer and its figures, for scripts."""
    figures = {name: value for name, value in vars(end).items() if name not in WITHOUT}
    error = None if end.error is None else str(end.error) or type(end.error).__name__
    return {**figures, "completion_tokens": end.completion_tokens, "error": error}
