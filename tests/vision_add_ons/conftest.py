"""For the tests of families, each of which has a `folder` with its tiny checkpoint."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint once more, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))
