"""Processes that tests start: as on a user's machine, but where a test is about more.

Torch and mistral-common are there for references; transformers imports them wherever they are,
which takes seconds.
"""

import os
import sys
from pathlib import Path

USERS_MACHINE = str(Path(__file__).with_name("users_machine"))
"""In a PYTHONPATH, this folder takes away what users do not have; all tests run with it there."""

COMMAND = [sys.executable, "-m", "engine"]
"""The command `sightline`."""


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs this code with these arguments."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def whole_environment() -> dict[str, str]:
    """This process' environment, for one that has all that is installed."""
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(place for place in places if place != USERS_MACHINE)
    return {**os.environ, "PYTHONPATH": kept}
