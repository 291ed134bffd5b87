"""For the tests of families, each of which has a `folder` with its tiny checkpoint."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.planted import Planting


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint once more, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def planting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planting]:
    """Kits into whose add-ons faults are planted, shared by all of those tests."""
    kits = Planting(tmp_path_factory.mktemp("planted"))
    yield kits
    kits.close()
