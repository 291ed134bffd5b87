"""The libraries that an engine stands on: most of the time of a short load is their import."""

import os
from collections.abc import Callable

from vision_add_ons.libraries import import_library

LOADED_IN = os.getpid()
"""The process that loaded a model first; see `engine.processes`."""

LIBRARIES = (
    "mlx.core",
    "numpy",
    "transformers",
    "mlx_lm",
    "engine.prompts.builder",
    "engine.decoding.desk",
)


def import_libraries(progress: Callable[[str, int, int], None]) -> None:
    """Import all of them, so that progress can be told, and a load cancelled, between two."""
    for done, name in enumerate(LIBRARIES):
        progress("import libraries", done, len(LIBRARIES))
        import_library(name)
    progress("import libraries", len(LIBRARIES), len(LIBRARIES))
