"""Whose process this is: threads, and MLX with them, do not come along into a forked one."""

import os
import sys

from vision_add_ons.errors import ForkedProcess

IMPORTED_IN = os.getpid()
"""The process that imported the engine; a forked one has this number and another of its own."""


def check_mlx() -> None:
    """Raises `ForkedProcess` where MLX was imported before the process was forked.

    Computing waits for ever there, once the other process has computed: the threads of MLX's
    streams are not there. Whether it has cannot be told, so having imported MLX counts.
    """
    here = os.getpid()
    # A module that comes with the first load, and so into the process that MLX belongs to.
    libraries = sys.modules.get("engine.libraries")
    loaded_in = IMPORTED_IN if libraries is None else libraries.LOADED_IN
    if "mlx.core" in sys.modules and here not in (IMPORTED_IN, loaded_in):
        raise ForkedProcess(
            "this process was forked from one that has imported MLX, which cannot compute here; "
            "start processes by multiprocessing's 'spawn', or fork before anything loads a model"
        )
