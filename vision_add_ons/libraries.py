"""Using the libraries underneath without what they do to the rest of a process.

Importing mlx-lm sets the process's limit of open files, for good, and where it may not, it fails;
it and mlx-vlm set environment variables, and so does OpenCV, which transformers imports for
mistral-common where it is installed: its variables turn Qt to plugins of its own, and where it
fails it leaves a place in `sys.path`. transformers prints what it has to say. An app that embeds us
finds none of that: all is as it was, and what would be printed is logged.

What a library sets up for itself when it is first imported stays: handlers on its own logger,
filters of `warnings`.
"""

import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

VARIABLES = (
    "LD_LIBRARY_PATH",
    "QT_QPA_FONTDIR",
    "QT_QPA_PLATFORM_PLUGIN_PATH",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS",
    "TRANSFORMERS_VERBOSITY",
)
"""What the imports set. Others are left alone: another thread may be setting them meanwhile."""

PRINTING = ("transformers", "transformers.utils.import_utils", "huggingface_hub")
"""Loggers that get a console handler of their library's as soon as that is imported."""

log = logging.getLogger("sightline")
_importing = threading.RLock()


def import_library(name: str) -> ModuleType:
    """Import mlx-lm, mlx-vlm, transformers or a module of theirs; the process stays as it was.

    Whoever may be the first to need one of them goes through here.
    """
    with _importing, undisturbed(), _places_kept(), _file_limit_kept():
        return importlib.import_module(name)


@contextmanager
def undisturbed() -> Iterator[None]:
    """While libraries work for us: no variable is changed, and what they would print is logged.

    It comes to the logger "sightline", as information: of what matters to a user, our own messages
    tell. Other threads' messages take their usual way, and so do all that an app's own handlers are
    there for. Enter it when the libraries are imported: their handlers must be there.
    """
    with _logged(), _variables_kept():
        yield


@contextmanager
def _logged() -> Iterator[None]:
    diverted = _Diverted()
    loggers = [logging.getLogger(name) for name in PRINTING]
    # A library that is not imported yet adds its handler on the way, and may use it at once.
    places: list[logging.Filterer] = [x for x in loggers if x.name.split(".")[0] not in sys.modules]
    places += [h for x in loggers for h in x.handlers if type(h) is logging.StreamHandler]
    for place in places:
        place.addFilter(diverted)
    try:
        yield
    finally:
        for place in places:
            place.removeFilter(diverted)


class _Diverted(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if threading.get_ident() != self._thread:
            return True
        log.info("%s: %s", record.name, record.getMessage())
        return False


@contextmanager
def _variables_kept() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _places_kept() -> Iterator[None]:
    """The inside of a package becomes no place to import from."""
    before = set(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [p for p in sys.path if p in before or not is_package(p)]


def is_package(place: str) -> bool:
    """Whether a place to import from is a package's inside.

    OpenCV leaves its own in `sys.path` where it fails for want of a system's library, and has
    modules named like Python's there.
    """
    return os.path.exists(os.path.join(place, "__init__.py"))


@contextmanager
def _file_limit_kept() -> Iterator[None]:
    """Whoever imports `resource` here is given one that leaves the limit of open files alone.

    Setting the limit back afterwards would not do: only root may raise the hard one again. Another
    thread that comes by such a `resource` sets with it whatever it likes, and so does everybody
    later.
    """
    try:
        import resource
    except ImportError:  # a system that has no such limit
        yield
        return
    owner: int | None = threading.get_ident()

    def setrlimit(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE or threading.get_ident() != owner:
            resource.setrlimit(which, limits)

    stand_in = ModuleType("resource", resource.__doc__)
    vars(stand_in).update({**vars(resource), "setrlimit": setrlimit})
    sys.modules["resource"] = stand_in
    try:
        yield
    finally:
        owner = None
        sys.modules["resource"] = resource
