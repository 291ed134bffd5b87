"""`sightline chat --resume` and `--cache-dir`: conversations that go on in another process."""

import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "engine", "chat", "--max-tokens", "6", "--seed", "1"]


def chat(*options: object, lines: str) -> tuple[list[str], str, int]:
    """Lines told, complaints, exit code."""
    command = [*COMMAND, *map(str, options)]
    ran = subprocess.run(command, input=lines, capture_output=True, text=True)
    return ran.stdout.splitlines(), ran.stderr, ran.returncode


def test_resume(tiny_folder: Path, tmp_path: Path) -> None:
    talk, script = tmp_path / "my talk", tmp_path / "talk.md"
    model = ("--model", tiny_folder, "--resume", talk)
    assert chat(*model, "--system", "Be brief.", lines="Hello?\n")[2] == 0
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


def test_cache_dir(tiny_folder: Path, tmp_path: Path) -> None:
    model = ("--model", tiny_folder, "--cache-dir", tmp_path / "cache")
    told = chat(*model, lines="Hello?\n/stats\n")[0]
    assert told[-1].startswith("on disk: ")
    told = chat(*model, lines="Hello?\n/stats\n")[0]
    assert " of them from disk)" in told[-3]
    told, complaints, code = chat("--cache-dir", tiny_folder / "config.json", lines="Hello?\n")
    assert (told, code) == ([], 2)
    assert complaints.startswith("sightline: cache_dir ")


def test_nowhere_to_keep_it(tiny_folder: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "talk"
    told, complaints, code = chat("--model", tiny_folder, "--resume", nowhere, lines="Hello?\n")
    assert code == 0
    assert told
    assert f"sightline: {nowhere} cannot be written: " in complaints
