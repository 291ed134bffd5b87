"""What an engine's thread does when, however fast it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine import Engine, Finished, Generation, TextDelta
from engine.events import Event


@contextmanager
def all_at_once(engine: Engine) -> Iterator[None]:
    """What is asked in here is begun with in one turn of the engine's thread."""
    gate = threading.Event()
    waiting = engine._worker.call(lambda memory: gate.wait())
    try:
        yield
    finally:
        gate.set()
    waiting.result()


@contextmanager
def held(engine: Engine, ask: Callable[[], Generation]) -> Iterator[Generation]:
    """An answer that has begun, and goes no further in here unless it is cancelled.

    Neither does the engine's thread, which waits at its first token.
    """
    begun, go_on = threading.Event(), threading.Event()
    with all_at_once(engine):
        generation = ask()
        emit = generation.emit

        def emitting(event: Event) -> None:
            emit(event)
            if isinstance(event, TextDelta | Finished):
                begun.set()
                while not (generation.done or generation.cancelled or go_on.wait(0.01)):
                    pass

        generation.emit = emitting  # type: ignore[method-assign]
    assert begun.wait(600)
    try:
        yield generation
    finally:
        go_on.set()


def cancel_at(generation: Generation, when: Callable[[Any], object]) -> Generation:
    """Cancel it on the engine's thread, at the first of its events of which that holds.

    To be called before the thread can have told any: in `all_at_once`.
    """
    emit = generation.emit

    def emitting(event: Event) -> None:
        emit(event)
        if not isinstance(event, Finished) and when(event):
            generation.cancel()

    generation.emit = emitting  # type: ignore[method-assign]
    return generation
