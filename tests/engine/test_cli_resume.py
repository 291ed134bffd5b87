"""`sightline chat --resume` and `--cache-dir`: conversations that go on in another process."""

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import COMMAND

from engine.cli import main

CHAT = ["chat", "--max-tokens", "6", "--seed", "1"]
Chat = Callable[..., tuple[list[str], str, int]]


def elsewhere(*options: object, lines: str) -> tuple[list[str], str, int]:
    """Lines told, complaints, exit code of a chat in a process of its own."""
    command = [*COMMAND, *CHAT, *map(str, options)]
    ran = subprocess.run(command, input=lines, capture_output=True, text=True)
    return ran.stdout.splitlines(), ran.stderr, ran.returncode


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Chat:
    """The same in this process."""

    def run(*options: object, lines: str) -> tuple[list[str], str, int]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        code = main([*CHAT, *map(str, options)])
        output = capfd.readouterr()
        return output.out.splitlines(), output.err, code

    return run


def test_resume(chat: Chat, letters_folder: Path, tmp_path: Path) -> None:
    talk, script = tmp_path / "my talk", tmp_path / "talk.md"
    model = ("--model", letters_folder, "--resume", talk)
    assert elsewhere(*model, "--system", "Be brief.", lines="Hello?\n")[2] == 0
    assert talk.exists()
    told, _, code = chat(*model, lines=f"And then?\n/stats\n/save {script}\n")
    assert code == 0
    assert " of them from disk)" in told[1]
    headings = [line for line in script.read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## System", "## You", "## model", "## You", "## model"]
    told, complaints, code = chat(*model, "--system", "Be rude.", lines="Hello?\n")
    assert (told, code) == ([], 2)
    assert "own system message" in complaints
    talk.write_text("my thesis")
    told, complaints, code = chat(*model, lines="Hello?\n")
    assert (told, code) == ([], 2)
    assert "no conversation" in complaints
    assert talk.read_text() == "my thesis"


def test_cache_dir(chat: Chat, letters_folder: Path, tmp_path: Path) -> None:
    model = ("--model", letters_folder, "--cache-dir", tmp_path / "cache")
    told = chat(*model, lines="Hello?\n/stats\n")[0]
    assert told[-1].startswith("on disk: ")
    told = chat(*model, lines="Hello?\n/stats\n")[0]
    assert " of them from disk)" in told[-3]
    told, complaints, code = chat("--cache-dir", letters_folder / "config.json", lines="Hello?\n")
    assert (told, code) == ([], 2)
    assert complaints.startswith("sightline: cache_dir ")


def test_nowhere_to_keep_it(chat: Chat, letters_folder: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "talk"
    told, complaints, code = chat("--model", letters_folder, "--resume", nowhere, lines="Hello?\n")
    assert code == 0
    assert told
    assert f"sightline: {nowhere} cannot be written: " in complaints
