"""Shared by all tests: the fast BLAS first, the demo model, and tiny random checkpoints."""

import gc
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.processes import USERS_MACHINE
from support.seeds import load_profile, seed_of

from model_kit.blas import preload_openblas

if TYPE_CHECKING:
    from engine import Engine

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker would start as many BLAS threads as there are cores, and they spin; torch's too.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux" and "avx2" in Path("/proc/cpuinfo").read_text():
    # Debian's OpenBLAS does not know a processor newer than itself; the same kernels on all others.
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
preload_openblas()
load_profile()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So has a shell that runs this in its background; the processes that tests interrupt would
    # ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """All that was imported stays: Python's collector would look through it at every engine's
    closing, a quarter of a second with torch and transformers."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for each test, of its own; see `support.seeds`."""
    return seed_of(request.node.name)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """What draws from a library's own state draws the same, whatever ran before."""
    import mlx.core as mx

    seed = seed_of(request.node.name)
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)


@pytest.fixture(scope="session", autouse=True)
def others_on_a_user_s_machine() -> Iterator[None]:
    """Not those that pytest-xdist starts, which are there by now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", USERS_MACHINE, prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the default model without its eyes, fetched at its first use."""
    from model_kit.demo import demo_folder

    return demo_folder()


@pytest.fixture(scope="session")
def seeing_demo() -> Path:
    """The folder of the default model."""
    from model_kit.demo import demo_folder

    return demo_folder(eyes=True)


@pytest.fixture(scope="session")
def seeing_folder(tmp_path_factory: pytest.TempPathFactory, letters_folder: Path) -> Path:
    """A Moxin-format checkpoint: a small random text model with small random eyes."""
    from support.moxin_checkpoint import write_seeing

    place = tmp_path_factory.mktemp("seeing") / "seeing"
    return write_seeing(place, letters_folder, seed_of("seeing folder"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    """A text model of small random weights."""
    from support import tiny

    return tiny.save(tiny.text_model(7), tmp_path_factory.mktemp("tiny") / "model", demo)


@pytest.fixture(scope="session")
def letters_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of small random weights that reads letter by letter, and loads in no time."""
    from support import tiny

    return tiny.save_of_letters(7, tmp_path_factory.mktemp("letters") / "model")


@pytest.fixture(scope="module")
def letters(letters_folder: Path) -> "Iterator[Engine]":
    """An engine of a test file's own with that model."""
    from engine import load

    with load(letters_folder) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def few_words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of small random weights and few words, which loads in no time."""
    from support import tiny

    folder = tmp_path_factory.mktemp("few-words") / "model"
    return tiny.save_of_few_words(tiny.of_few_words(7), folder)


@pytest.fixture(scope="session")
def engine(demo: Path) -> "Iterator[Engine]":
    """One engine with the default model's text half, for tests that leave no trace in it."""
    from engine import load

    with load(demo) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def tiny_engine(tiny_folder: Path) -> "Iterator[Engine]":
    """One engine with a text model of small random weights, where any model will do."""
    from engine import load

    with load(tiny_folder) as loaded:
        yield loaded


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "drawn: something about it follows from a seed")
    config.addinivalue_line("markers", "whole: in a sweep, it does more than in the test command")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m drawn` chooses what a sweep is for."""
    for item in items:
        if not {"seed", "class_kit", "planting", "family"}.isdisjoint(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker("drawn")


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """The tables of errors that the parity tests measured, and of prompts that they compared."""
    worst: dict[tuple[str, str], float] = {}
    compared: dict[tuple[str, str], tuple[int, int]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "parity":
                    family, case, error = value
                    worst[family, case] = max(error, worst.get((family, case), 0.0))
                elif name == "prompts":
                    family, template, *counts = value
                    compared[family, template] = tuple(counts)
    if worst:
        terminalreporter.section("relative errors against the references")
    for (family, case), error in worst.items():
        terminalreporter.write_line(f"{error:8.1e}  {family}: {case}")
    if compared:
        terminalreporter.section("conversations: ids equal to the family's own processor's")
    for (family, template), (equal, refused) in compared.items():
        terminalreporter.write_line(
            f"{equal:4} equal, {refused:3} not compared  {family}: {template}"
        )
