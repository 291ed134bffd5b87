"""`sightline chat`: its commands, images in it, and paths as people type them."""

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Terminal, answer_of
from support.processes import COMMAND

from engine import Engine, GenerationOptions, TextDelta
from engine.cli import main
from engine.cli.answer import show_answer
from engine.cli.arguments import read_path


def test_chat_from_a_pipe(chat: Callable[..., tuple[str, str]], loaded: Engine) -> None:
    own = loaded.chat(system="Be brief.", options=GenerationOptions(max_tokens=6))
    expected = [own.send(text).result().answer for text in ("Hello!", "/etc is what?")]
    lines = ("Hello!", "", "   ", " /etc is what?", "/quit", "never read")
    out, complaints = chat(*lines, options=("--system", "Be brief."))
    assert out == "".join(f"{answer}\n" for answer in expected)
    assert set(complaints.splitlines()) <= {"sightline: the answer was cut after 6 tokens"}


def test_chat_commands(chat: Callable[..., tuple[str, str]]) -> None:
    out, complaints = chat("/stats", "/help", "/dance now", "Hello!", "/stats", "/exit", "x")
    told = out.splitlines()
    assert told[0] == "no answer yet"
    assert told[1].startswith("prompt cache: ")
    assert "/image FILE   attach a picture to the next message" in told
    assert any("There is no /dance" in line for line in told)
    assert sum(" tokens/s, finish reason length" in line for line in told) == 1
    kept = [line for line in told if line.startswith("prompt cache: ")]
    assert not kept[-1].startswith("prompt cache: 0 conversations")
    assert complaints == "sightline: the answer was cut after 6 tokens\n"


def test_chat_starts_anew(chat: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("1.md", "2.md", "3.md")]
    saves = [f"/save {file}" for file in files]
    chat("Hello!", "/system Be kind.", saves[0], "Hello!", "/reset", saves[1], "/system", saves[2])
    kind = "# Conversation with demo\n\n## System\n\nBe kind.\n"
    assert [file.read_text() for file in files] == [kind, kind, "# Conversation with demo\n"]


def test_chat_saves_once(chat: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    file = tmp_path / "the talk.md"
    nowhere = tmp_path / "no" / "where.md"
    out, complaints = chat("Hello!", f'/save "{file}"', f"/save {file}", f"/save {nowhere}", "Bye")
    first, second = (line for line in out.splitlines() if not line.startswith("Saved to "))
    text = file.read_text()
    assert text == f"# Conversation with demo\n\n## You\n\nHello!\n\n## demo\n\n{first}\n"
    assert second
    assert f"{file} exists already" in complaints
    assert f"{nowhere} cannot be written: No such file" in complaints


def test_chat_pictures(chat: Callable[..., tuple[str, str]], photo: Path) -> None:
    lines = (f"/image {photo}", "What is this?", "/image", "/image nowhere.png", "Hello!")
    out, complaints = chat(*lines)
    told, refused = out.splitlines(), complaints.splitlines()
    assert told[0] == "my photo.png, 4x3: goes with the next message."
    assert told[1] == "Which picture? /image FILE"
    assert "text only" in refused[0]
    assert "no longer attached" in refused[0]
    assert refused[1] == "sightline: 'nowhere.png' cannot be read: No such file or directory"
    assert len(told) == 3  # an answer, without the pictures


def test_chat_about_pictures(
    seeing_folder: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = f"/image {photo}\nLook\n/stats\nAgain\n/stats\n/save {tmp_path / 'talk.md'}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    model = ["--model", str(seeing_folder), "--max-tokens", "3"]
    assert main(["chat", "--image", str(photo), *model]) == 0
    shown = capsys.readouterr()
    told = [line for line in shown.out.splitlines() if "images encoded" in line]
    assert "1 images encoded and 1 reused" in told[0]  # the picture was given twice
    assert "0 images encoded and 0 reused" in told[1]
    assert shown.err == "sightline: the answer was cut after 3 tokens\n" * 2
    transcript = (tmp_path / "talk.md").read_text()
    assert "## You\n\n" + "*Picture: my photo.png, 4x3*\n\n" * 2 + "Look\n" in transcript


@pytest.mark.parametrize("typed", ["{}", '"{}"', "'{}'", "escaped"])
def test_typed_paths(typed: str, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(photo).replace(" ", "\\ ") if typed == "escaped" else typed.format(photo)
    assert read_path(text) == photo
    monkeypatch.setenv("HOME", str(photo.parent))
    assert read_path(text.replace(str(photo.parent), "~")) == photo


def test_typed_paths_that_are_no_shell_words(tmp_path: Path) -> None:
    (tmp_path / "it's").touch()
    assert read_path(f"{tmp_path}/it's") == tmp_path / "it's"
    assert read_path(f"{tmp_path}/it's new") == tmp_path / "it's new"
    assert read_path(f"{tmp_path}/two words") == tmp_path / "two words"


def test_control_characters_reach_no_terminal() -> None:
    text = "a\x1b[2J\x9b1mb\r\x00\x07\x7f\tc\nd👩‍🚀é"
    shown = {}
    for out in (Terminal(), io.StringIO()):
        show_answer(lambda: answer_of(TextDelta(text)), out)
        shown[type(out)] = out.getvalue()
    assert shown[Terminal] == "a[2J1mb\tc\nd👩‍🚀é"
    assert shown[io.StringIO] == text


def test_echo_into_chat(letters_folder: Path) -> None:
    command = [*COMMAND, "chat", "--max-tokens", "6", "--model", str(letters_folder)]
    ran = subprocess.run(command, input="hi\n", capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "sightline: the answer was cut after 6 tokens\n")
    assert len(ran.stdout) > 3
    assert "> " not in ran.stdout
