"""The guide for embedding: its snippets run and do what it says, its commands exist."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import recited, tiny
from support.guides import DOCS, blocks, run
from support.waiting import wait_for

from engine import Event, Generation, TextDelta
from engine.cli import main

GUIDE = DOCS / "embedding.md"
TEXT = GUIDE.read_text(encoding="utf-8")
EMIT = Generation.emit
SAMPLE = Path(__file__).parents[2] / "model_kit" / "demo_parts" / "samples" / "animals.png"


def quick_start(names: dict[str, Any], printed: str) -> None:
    assert "load decoder" in printed
    assert "Paris" in printed
    assert "stop" in printed


def stopping(names: dict[str, Any], printed: str) -> None:
    assert printed == "cancelled 2\nloading the model was cancelled\n"
    assert names["chat"].last.completion_tokens == 1


def waiting(generation: Generation, event: Event) -> None:
    """Deliver an event; the answer goes no further before it is cancelled."""
    EMIT(generation, event)
    if isinstance(event, TextDelta):
        wait_for(lambda: generation.cancelled)


def callback(names: dict[str, Any], printed: str) -> None:
    assert "Paris" in printed


def asyncio_bridge(names: dict[str, Any], printed: str) -> None:
    assert names["end"].finish_reason == "stop"
    assert printed == names["end"].answer


def memory(names: dict[str, Any], printed: str) -> None:
    stats = names["stats"]
    assert stats["conversations"] == 1
    assert 0 < stats["bytes"] <= stats["max_bytes"] == 256 * 2**20
    assert list(Path("cache").rglob("*.safetensors"))


def conversations(names: dict[str, Any], printed: str) -> None:
    assert "assistant" in printed
    assert names["chat"].last.disk_tokens > 0


def defaults(names: dict[str, Any], printed: str) -> None:
    assert names["options"].temperature == 0
    assert printed


def forms(names: dict[str, Any], printed: str) -> None:
    age, older, year = printed.splitlines()
    assert int(age) == json.loads(names["end"].answer)["age"]
    assert older in ("yes", "no")
    assert re.fullmatch("(19|20)[0-9]{2}", year)


def tools(names: dict[str, Any], printed: str) -> None:
    form, call, *_ = printed.splitlines()
    assert form.startswith("told in plain texts")
    (made,) = [m for m in names["chat"].messages if m.tool_calls][:1]
    assert call.startswith("weather {'city': ")
    assert made.tool_calls[0]["id"] == call.split()[-1]
    assert names["chat"].last.cached_tokens > 0
    assert [m.role for m in names["chat"].messages].count("tool") == len(made.tool_calls)


def thoughts(names: dict[str, Any], printed: str) -> None:
    assert "0 of" in printed.splitlines()[-1]
    assert names["chat"].messages[1].reasoning is None


def sooner(names: dict[str, Any], printed: str) -> None:
    guessed, told = (int(number) for number in re.findall(r"\d+", printed))
    assert 0 <= guessed <= told == names["end"].completion_tokens
    assert names["chat"].last.drafted_tokens == 0


def pictures(names: dict[str, Any], printed: str) -> None:
    assert printed == "badger and owl\n"
    messages = names["chat"].messages
    assert len(messages) == 6
    assert [type(part) is str for part in messages[4].parts] == [True, False, True, False, True]


def errors(names: dict[str, Any], printed: str) -> None:
    unread, full = names["shown"]
    assert unread.startswith("'letter.txt' is not a picture")
    assert "full" in full
    assert names["chat"].messages == ()


CHECKS: list[Callable[[dict[str, Any], str], None]] = [
    quick_start,
    stopping,
    callback,
    asyncio_bridge,
    memory,
    conversations,
    defaults,
    forms,
    tools,
    thoughts,
    sooner,
    pictures,
    errors,
]
ANY_MODEL = (asyncio_bridge, memory, conversations, defaults, thoughts, sooner)
"""What these show does not depend on what the model says, so a small one says it."""
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TAUGHT = {
    forms: {1: '{"name": "Bob", "age": 42}', 3: "yes", 5: "1984"},
    tools: {1: CALL, 3: "It rains."},
}
"""What a model says that these are shown with, by how long the conversation is."""
SNIPPETS = blocks(GUIDE, "python")


@pytest.fixture(scope="module")
def terse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model whose answers are short, as most of its letters end them."""
    folder = tiny.save_of_letters(7, tmp_path_factory.mktemp("terse") / "model")
    ends = [tiny.LETTERS.index(letter) for letter in ("</s>", *tiny.LETTERS[4:60])]
    tiny.edit_config(folder, eos_token_id=ends)
    return folder


def test_each_snippet_is_checked() -> None:
    assert len(SNIPPETS) == len(CHECKS)


@pytest.mark.parametrize(("code", "line"), SNIPPETS)
def test_snippet(
    code: str,
    line: int,
    seeing_demo: Path,
    terse: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with Image.open(SAMPLE) as sample:
        sample.convert("RGB").save("photo.jpg", quality=95)
    Path("letter.txt").write_text("Dear Sir or Madam")
    check = CHECKS[[snippet.values[1] for snippet in SNIPPETS].index(line)]
    if check in TAUGHT:
        terse = recited.save(tmp_path / "taught", TAUGHT[check], recited.PLAIN)
    if check in ANY_MODEL or check in TAUGHT:
        assert '"demo"' in code
        code = code.replace('"demo"', repr(str(terse)))
    if check is stopping:
        monkeypatch.setattr(Generation, "emit", waiting)
    names = run(GUIDE, code, line)
    check(names, capsys.readouterr().out)


@pytest.mark.parametrize(("code", "line"), blocks(GUIDE, "sh"))
def test_commands(code: str, line: int, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shown.split()[:2] for shown in code.splitlines()]
    assert {program for program, _ in commands} <= {"sightline", "hf"}
    for program, command in commands:
        if program == "sightline":
            with pytest.raises(SystemExit, match="0"):
                main([command, "--help"])


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`(\w+(?:Error|Exceeded|Closed|Busy))`", TEXT)))
)
def test_errors_exist(name: str) -> None:
    import engine

    assert issubclass(getattr(engine, name), engine.SightlineError)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^):#]+)[)#]", TEXT))
def test_links(target: str) -> None:
    assert (GUIDE.parent / target).exists()
