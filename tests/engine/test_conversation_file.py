"""Conversations' files: refused when they are read, written with an engine and without."""

import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engine import (
    ConversationFileError,
    Engine,
    GenerationOptions,
    ImageError,
    PromptError,
    TextDelta,
    conversation_file,
    load,
)
from engine.images import ImageLimits, load_picture
from engine.memory.memory import Memory
from engine.prompts.messages import Message

WAIT = 600


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
    content["messages"][0]["parts"] = [{"text": "a \ud800"}]


def two_questions(content: Any) -> None:
    content["messages"][1]["role"] = "user"


def unanswered(content: Any) -> None:
    content["messages"].pop()


def system_in_between(content: Any) -> None:
    content["messages"].insert(1, {**content["messages"][0], "role": "system"})


def tool_without_an_answer(content: Any) -> None:
    content["messages"].append({**content["messages"][0], "role": "tool"})


@pytest.mark.parametrize(
    "damage",
    [half_a_character, two_questions, unanswered, system_in_between, tool_without_an_answer],
)
def test_what_could_only_fail_later(letters: Engine, tmp_path: Path, damage: Any) -> None:
    refused(letters, tmp_path / "talk", damage)


def refused(engine: Engine, path: Path, damage: Callable[[Any], None]) -> None:
    content = json.loads(saved(path).read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConversationFileError, match="it is left as it is") as caught:
        engine.chat(restore=path)
    assert "\n" not in str(caught.value)
    assert json.loads(path.read_text()) == content


RED = "115b619eb3ee6288fa519fc5b2e38d6449f62d3a0941972e43c32b637122f4cb"
BLUE = "3594eb097d9d6e3abaed8209bdcd490d38f9241fce3e487e11b53e3e7acb7aff"
WRITTEN_1 = {
    "format": "sightline-conversation-1",
    "messages": [
        {"role": "system", "text": "Be short.", "tokens": [], "pictures": []},
        {"role": "user", "text": "Look", "tokens": [], "pictures": [RED, BLUE]},
        {"role": "assistant", "text": "Yes", "tokens": [62, 74, 88], "pictures": []},
        {"role": "user", "text": "More?", "tokens": [], "pictures": []},
        {"role": "assistant", "text": "No", "tokens": [51, 84], "pictures": []},
    ],
    "pictures": {
        RED: "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGP8z8DAwMDAxMDAwMDAAAANHQED"
        "asKb6QAAAABJRU5ErkJggg==",
        BLUE: "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAAFUlEQVR4nGNkYPjPwMDAwMDAxAADABErAQPd"
        "iBRnAAAAAElFTkSuQmCC",
    },
}
"""As it was written before messages had parts."""


def test_a_file_of_the_first_form_goes_on(seeing_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    path.write_text(json.dumps(WRITTEN_1))
    red, blue = (
        load_picture(Image.new("RGB", *how)) for how in (((2, 2), "red"), ((3, 2), "blue"))
    )
    assert conversation_file.read(path) == [
        Message("system", "Be short."),
        Message("user", (red, blue, "Look")),
        Message("assistant", "Yes", (62, 74, 88)),
        Message("user", "More?"),
        Message("assistant", "No", (51, 84)),
    ]
    with load(seeing_folder) as engine:
        chat = engine.chat(restore=path, options=GenerationOptions(max_tokens=2))
        answer = chat.send("And then?")
        assert [span.picture.digest for span in answer.prompt.spans] == [RED, BLUE]
        assert "Yes\n" in engine.detokenize(answer.prompt.tokens)
        answer.result(WAIT)
        chat.save(path).result(WAIT)
        assert json.loads(path.read_text())["format"] == "sightline-conversation-2"
        assert engine.chat(restore=path).messages == chat.messages
    assert len(chat.messages) == 7


@pytest.mark.parametrize("message", range(5))
@pytest.mark.parametrize("name", ["role", "text", "tokens", "pictures"])
def test_a_damaged_file_of_the_first_form(tmp_path: Path, message: int, name: str) -> None:
    for wrong in (5, [5], {"a": 1}, "abc", None):
        content: Any = json.loads(json.dumps(WRITTEN_1))
        content["messages"][message][name] = wrong
        if (name, wrong) in (("text", "abc"), ("tokens", [5])):
            continue
        (tmp_path / "talk").write_text(json.dumps(content))
        with pytest.raises(ConversationFileError):
            conversation_file.read(tmp_path / "talk")


def everything(path: Path) -> list[Message]:
    red, blue = (
        load_picture(Image.new("RGB", *how)) for how in (((2, 2), "red"), ((3, 2), "blue"))
    )
    call = {"id": "a1", "function": {"name": "look", "arguments": {"at": ["sky", 5, None]}}}
    history = [
        Message("system", ("Look", red)),
        Message("user", ("This", red, "or", blue, "that?", red), name="Ann"),
        Message("assistant", (), (5, 6), "Let me see.", (call,)),
        Message("tool", ("A view:", blue), tool_call_id="a1", name="look"),
        Message("assistant", "That.", (7,), reasoning="It looks so."),
        Message("user", ""),
        Message("assistant", (blue, "Here.")),
    ]
    conversation_file.write(path, history)
    return history


def test_all_that_messages_carry(letters: Engine, tmp_path: Path) -> None:
    history = everything(tmp_path / "talk")
    assert conversation_file.read(tmp_path / "talk") == history
    assert len(json.loads((tmp_path / "talk").read_text())["pictures"]) == 2
    chat = letters.chat(restore=tmp_path / "talk")
    assert chat.messages == tuple(history)
    chat.save(tmp_path / "again").result(WAIT)
    assert (tmp_path / "again").read_text() == (tmp_path / "talk").read_text()


def test_a_history_that_a_model_cannot_go_on_with_says_why(letters: Engine, tmp_path: Path) -> None:
    """It opens, to be shown and saved; a question is refused as it is with any such message."""
    everything(tmp_path / "talk")
    chat = letters.chat(restore=tmp_path / "talk")
    with pytest.raises(ImageError, match="cannot look at pictures"):
        chat.send("And?")
    assert len(chat.messages) == 7


MISSING = object()
NO_PARTS = [5, "a", {}, {"a": 1}, None, [5], ["a"], [[]], [{}], [None], [{"txt": "a"}], MISSING]
NO_PARTS += [[{"text": 5}], [{"text": None}], [{"image": "0" * 64}], [{"image": [RED]}]]
NO_PARTS += [[{"image": None}], [{"text": "a", "image": RED}], [{"text": "a", "more": 5}]]
DAMAGES: list[tuple[str, list[Any]]] = [
    ("parts", NO_PARTS),
    ("role", [MISSING, None, 5, "", "bishop", ["user"], "assistant", "tool"]),
    ("tokens", [5, "ab", {}, {"5": 6}, [True], [1.5], [-1], [2**31], ["5"], [[5]], None]),
    ("reasoning", [5, [], {}, ["a"], "\ud800"]),
    ("tool_calls", [5, "a", {}, {"name": "a"}, [5], [{}], [{"name": 5}], [None], None]),
    ("tool_call_id", [5, [], {}]),
    ("name", [5, [], {}]),
    ("more", [5, None, "a"]),
    ("text", ["a"]),
]


@pytest.mark.parametrize(("name", "wrongs"), DAMAGES, ids=[name for name, _ in DAMAGES])
def test_a_damaged_message(tmp_path: Path, name: str, wrongs: list[Any]) -> None:
    everything(tmp_path / "whole")
    for wrong in wrongs:
        content = json.loads((tmp_path / "whole").read_text())
        content["messages"][1][name] = wrong
        if wrong is MISSING:
            del content["messages"][1][name]
        (tmp_path / "talk").write_text(json.dumps(content))
        with pytest.raises(ConversationFileError, match="it is left as it is"):
            conversation_file.read(tmp_path / "talk")


@pytest.mark.parametrize("name", ["format", "messages", "pictures"])
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    everything(tmp_path / "whole")
    wrongs: list[Any] = [MISSING, 5, "a", {}, [5], {"a": 5}, None, [[]], {RED: 5}, {RED: "a"}]
    for wrong in wrongs:
        content = json.loads((tmp_path / "whole").read_text())
        content[name] = wrong
        if wrong is MISSING:
            del content[name]
        (tmp_path / "talk").write_text(json.dumps(content))
        with pytest.raises(ConversationFileError, match="it is left as it is"):
            conversation_file.read(tmp_path / "talk")


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
