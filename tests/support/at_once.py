"""Requests that an engine begins with together, however fast it is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine import Engine


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
