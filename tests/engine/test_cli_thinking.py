"""The commands with a model that thinks: what is shown where, and the flags."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from support import published_qwen_templates as published
from support import scripted
from support.commands import Terminal, take

from engine import Engine, load
from engine.cli import main


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("thinker") / "model"
    with load(scripted.save(folder, published.QWEN35, scripted.THINKS)) as engine:
        yield engine


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch, thinker: Engine) -> None:
    take(monkeypatch, thinker)


def test_a_thought_is_for_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", err := Terminal())
    assert main(["generate", "--prompt", "Well?"]) == 0
    assert capsys.readouterr().out == "Yes sir"
    shown = err.getvalue()
    assert "\x1b[2mHm\x1b[0m\x1b[2m so\x1b[0m\n" in shown
    assert "6 tokens (2 of them thought)" in shown


def test_it_is_left_out_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "Well?"]) == 0
    output = capsys.readouterr()
    assert output.out == "Yes sir"
    assert "Hm" not in output.err


def test_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, thought in (
        (["--no-thinking"], ""),
        (["--thinking"], "Hm so"),
        (["--max-thinking-tokens", "1"], "Hm"),
    ):
        assert main(["generate", "--prompt", "Well?", "--json", *flags]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["reasoning"], told["answer"]) == (thought, "Yes sir")
    assert main(["generate", "--prompt", "Well?", "--raw", "--thinking"]) == 2
    assert "thinking goes with messages" in capsys.readouterr().err


def test_a_chat_and_its_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    thinker: Engine,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sys.stderr", err := Terminal())
    monkeypatch.setattr("sys.stdin", io.StringIO("Well?\n"))
    assert main(["chat", "--resume", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out == "Yes sir\n"
    assert err.getvalue().startswith("\x1b[2mHm\x1b[0m")
    (_, answer) = thinker.chat(restore=tmp_path / "kept").messages
    assert (answer.text, answer.reasoning) == ("Yes sir", "Hm so")
