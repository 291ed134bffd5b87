"""`sightline models`, and what the other commands make of the models' names."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.processes import python
from support.tiny_hub import Repo, TinyHub, tiny_hub

from engine.cli import main
from model_kit.models import KNOWN_MODELS

NAME = "qwen2-vl-2b"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    with tiny_hub(cache, monkeypatch) as hub:
        yield hub


def put_in_cache(cache: Path, name: str, folder: Path) -> None:
    """As if `folder` had been downloaded by an older version of the hub's library."""
    checkpoint = KNOWN_MODELS[name].checkpoint
    assert checkpoint is not None
    home = cache / "hub" / f"models--{checkpoint.replace('/', '--')}"
    for part in ("refs", "snapshots"):
        (home / part).mkdir(parents=True)
    (home / "refs" / "main").write_text("c" * 40)
    (home / "snapshots" / ("c" * 40)).symlink_to(folder)


def test_the_list(
    hub: TinyHub, cache: Path, demo: Path, seeing_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_cache(cache, NAME, demo)
    assert main(["models"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("name ")
    assert [line.split()[0] for line in lines] == list(KNOWN_MODELS)
    there = {line.split()[0] for line in lines if line.split()[1] == "yes"}
    assert there == {"demo", "smollm2", NAME}
    for line, known in zip(lines, KNOWN_MODELS.values(), strict=True):
        assert line[head.index("what it is") :].startswith(known.about)
        assert line[head.index("default prompt") :].startswith(known.prompt or "")
        assert line[head.index("checkpoint") :] == (known.checkpoint or "")
    assert hub.requests == []


def test_the_list_as_json(
    hub: TinyHub, cache: Path, demo: Path, seeing_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in told if entry["downloaded"]] == ["demo", "smollm2"]
    assert told[-1] == {**vars(list(KNOWN_MODELS.values())[-1]), "downloaded": False}


def test_inspect_by_name(
    hub: TinyHub, letters_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["tiny/text"] = Repo(letters_folder)
    assert main(["inspect", "tiny/text"]) == 0
    assert "model type:    mistral" in capsys.readouterr().out
    for command in (["inspect"], ["generate", "--prompt", "x", "--model"]):
        assert main([*command, "qwen2-vl"]) == 2
        assert "did you mean qwen2-vl-" in capsys.readouterr().err
        assert main([*command, "tiny/nothing"]) == 2
        assert "no public model of that name" in capsys.readouterr().err


def test_what_is_asked_about_a_picture_if_nothing_is(
    hub: TinyHub, cache: Path, seeing_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_cache(cache, NAME, seeing_folder)
    photo = cache / "photo.png"
    Image.new("RGB", (40, 30), "red").save(photo)
    asked = ["generate", "--image", str(photo), "--model", NAME, "--max-tokens", "3", "--json"]
    answers = []
    for prompt in ([], ["--prompt", "Describe the image in English"], ["--prompt", "Hello"]):
        assert main([*asked, *prompt]) == 0
        told = json.loads(capsys.readouterr().out)
        answers.append((told["answer"], told["prompt_tokens"]))
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


@pytest.mark.parametrize(
    "asked",
    [
        ["--model", NAME],  # and no picture
        ["--model", "smollm2", "--image"],
        ["--model", "some/other", "--image"],
        ["--model", "/a/folder", "--image"],
    ],
)
def test_when_nothing_can_be_asked(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (4, 3)).save(photo)
    assert main(["generate", *asked, *([str(photo)] if asked[-1] == "--image" else [])]) == 2
    assert "give the question with --prompt" in capsys.readouterr().err


PATIENT = """
import sys
from model_kit import download
download._CLEAN_UP_SECONDS = 600  # however slow the machine is
from engine.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", [["inspect"], ["generate", "--prompt", "x", "--model"]])
def test_ctrl_c_during_a_download(
    command: list[str], hub: TinyHub, cache: Path, letters_folder: Path
) -> None:
    hub.repos["tiny/text"] = Repo(letters_folder)
    hub.stall = "model.safetensors"
    with subprocess.Popen(
        python(PATIENT, *command, "tiny/text"), stderr=subprocess.PIPE
    ) as running:
        assert hub.stalled.wait(600)
        assert list(cache.rglob("*.incomplete"))
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=600) == (None, b"")
    assert running.returncode == 130
    assert list(cache.rglob("*.incomplete")) == []
