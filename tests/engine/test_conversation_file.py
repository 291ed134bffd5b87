"""Conversations' files: refused when they are read, written with an engine and without."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine import (
    ConversationFileError,
    Engine,
    GenerationOptions,
    PromptError,
    TextDelta,
    conversation_file,
    load,
)
from engine.images import ImageLimits, load_picture
from engine.memory import Memory
from engine.prompts.messages import Message

WAIT = 60


@pytest.fixture(scope="module")
def letters(letters_folder: Path) -> Iterator[Engine]:
    with load(letters_folder) as engine:
        yield engine


def saved(path: Path) -> Path:
    conversation_file.write(path, [Message("user", "Hi"), Message("assistant", "Ho", (5, 6))])
    return path


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("make", [make_fifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file(letters: Engine, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "talk")
    kind = os.lstat(tmp_path / "talk").st_mode
    with pytest.raises(ConversationFileError, match="cannot be read: it is no file"):
        letters.chat(restore=tmp_path / "talk")
    with pytest.raises(ConversationFileError, match="cannot be written: it is no file"):
        letters.chat("Be short.").save(tmp_path / "talk").result(WAIT)
    assert os.lstat(tmp_path / "talk").st_mode == kind


def half_a_character(content: Any) -> None:
    content["messages"][0]["text"] = "a \ud800"


def two_questions(content: Any) -> None:
    content["messages"][1]["role"] = "user"


def unanswered(content: Any) -> None:
    content["messages"].pop()


def system_in_between(content: Any) -> None:
    content["messages"].insert(1, {**content["messages"][0], "role": "system"})


def seeing_answer(content: Any) -> None:
    picture = load_picture(Image.new("RGB", (2, 2)))
    conversation_file.write(Path("seen"), [Message("user", (picture, "Look"))])
    content["pictures"] = json.loads(Path("seen").read_text())["pictures"]
    content["messages"][1]["pictures"] = [picture.digest]


def no_ids(content: Any) -> None:
    content["messages"][1]["tokens"] = [True, 1.5]


@pytest.mark.parametrize(
    "damage",
    [half_a_character, two_questions, unanswered, system_in_between, seeing_answer, no_ids],
)
def test_what_could_only_fail_later(
    letters: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    content = json.loads(saved(Path("talk")).read_text())
    damage(content)
    Path("talk").write_text(json.dumps(content))
    with pytest.raises(ConversationFileError, match="it is left as it is"):
        letters.chat(restore="talk")


def test_ids_of_another_vocabulary(letters: Engine, tmp_path: Path) -> None:
    """What another model wrote is gone on with, by its words."""
    text = "".join(chr(c) for c in range(97, 110))
    ids = (*letters.tokenize(text), 2**30)  # which decoders leave out
    history = [Message("user", "Hi"), Message("assistant", text, ids)]
    conversation_file.write(tmp_path / "talk", history)
    chat = letters.chat(restore=tmp_path / "talk")
    assert chat.send("Go on", options=GenerationOptions(max_tokens=1)).result(WAIT).tokens


def test_a_picture_of_many_bytes(tmp_path: Path) -> None:
    """What an app took in over the usual limit can be read again too."""
    Image.new("RGB", (4800, 4800), "red").save(tmp_path / "large.bmp")
    picture = load_picture(tmp_path / "large.bmp", ImageLimits(max_bytes=2**30))
    history = [Message("user", (picture, "Look")), Message("assistant", "Yes")]
    conversation_file.write(tmp_path / "talk", history)
    assert conversation_file.read(tmp_path / "talk") == history


def test_words_need_no_engine(letters_folder: Path, tmp_path: Path) -> None:
    engine = load(letters_folder)
    chat = engine.chat("Be long.")
    answer = chat.send("Hi", options=GenerationOptions(max_tokens=1500))
    next(event for event in answer if isinstance(event, TextDelta) and event.text)
    engine.close()
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1].text == answer.result(0).answer
    assert chat.save(tmp_path / "talk").result(0) == (tmp_path / "talk").stat().st_size
    assert tuple(conversation_file.read(tmp_path / "talk")) == chat.messages
    with pytest.raises(ConversationFileError):
        chat.save(tmp_path / "nowhere" / "talk").result(0)


def test_words_saved_while_the_engine_closes(letters_folder: Path, tmp_path: Path) -> None:
    """What is saved last lies there in the end, and all of it is written."""
    engine = load(letters_folder)
    chat = engine.chat(options=GenerationOptions(max_tokens=3))
    chat.send("Hi").result(WAIT)

    def close(memory: Memory) -> "tuple[Future[int], Future[int]]":
        early = chat.save(tmp_path / "talk")
        engine.close()  # on its own thread, which has more to do before it ends
        chat._messages += [Message("user", "More"), Message("assistant", "No.")]
        return early, chat.save(tmp_path / "talk")

    early, late = engine._worker.call(close).result(WAIT)
    assert early.result(WAIT) > 0
    assert late.result(WAIT) > 0
    assert tuple(conversation_file.read(tmp_path / "talk")) == chat.messages
    engine._worker.thread.join(WAIT)
    assert chat.save(tmp_path / "talk").result(0) > 0


def test_what_is_no_history_is_not_written(letters: Engine, tmp_path: Path) -> None:
    for messages in ([Message("user", "Hi")], [5], "abc", [{"role": "user", "content": "\ud800"}]):
        with pytest.raises(PromptError):
            letters.save(tmp_path / "talk", messages, None)  # type: ignore[arg-type]
    assert not (tmp_path / "talk").exists()
