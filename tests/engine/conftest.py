"""What tests of the commands share: an engine that they take, a chat over lines, a photograph."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.commands import take

from engine import Engine
from engine.cli import main


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tiny_engine: Engine) -> Engine:
    return take(monkeypatch, tiny_engine)


@pytest.fixture
def chat(
    loaded: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Run a chat over lines of input; gives its output and its complaints."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["chat", "--max-tokens", "6", *options]) == 0
        output = capsys.readouterr()
        return output.out, output.err

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "my photo.png"
    Image.new("RGB", (4, 3), "red").save(file)
    return file
