"""`sightline demo`: what it shows is true."""

from pathlib import Path

import pytest

from engine.cli import main
from engine.cli.demo import TURNS


def test_demo(seeing_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    questions = [i for i, line in enumerate(lines) if line.startswith("> ")]
    assert [lines[i + 1] for i in questions] == ["badger and owl", "badger", "camper"]
    encoded = [
        f" {n} images encoded" in lines[i + 2] for i, n in zip(questions, (1, 0, 1), strict=True)
    ]
    assert all(encoded)
    for i, (question, sample) in zip(questions, TURNS, strict=True):
        assert lines[i].startswith(f"> {question}")
        if sample is not None:
            assert Path(lines[i].split("[")[1].rstrip("]")).name == sample
    assert "sightline chat" in lines[-1]
