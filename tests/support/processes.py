"""Processes that tests start: without torch, but where it is what a test is about.

Torch is for references, a user has none, and transformers takes seconds to import it where it is.
"""

import os
import sys
from pathlib import Path

WITHOUT_TORCH = str(Path(__file__).with_name("without_torch"))
"""In a PYTHONPATH, this folder takes torch away; all tests run with it there."""

COMMAND = [sys.executable, "-m", "engine"]
"""The command `sightline`."""


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs this code with these arguments."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment_with_torch() -> dict[str, str]:
    """This process' environment, for one that has torch."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(place for place in places if place != WITHOUT_TORCH)
    return {**os.environ, "PYTHONPATH": kept}
