"""Conversations saved by name, and gone on with by another engine."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.at_once import held
from support.short_chats import SHORT, of_digits, talk

from engine import (
    ConversationFileError,
    Engine,
    GenerationOptions,
    OptionError,
    PromptError,
    load,
)
from engine.memory import kv_file
from engine.memory.memory import kv_path
from vision_add_ons.errors import ImageError
from vision_add_ons.testing import Photo


def test_a_saved_conversation_goes_on(letters_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        chat = talk(engine)
        written = chat.save(path).result(600)
        assert written == path.stat().st_size + kv_path(path).stat().st_size
        assert engine.cache_stats()["disk_bytes_written"] == written
        messages = chat.messages
        expected = chat.send("And then?").result()
    with load(letters_folder) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        assert chat.messages == messages
        end = chat.send("And then?").result()
        assert end.tokens == expected.tokens
        assert end.cached_tokens == end.disk_tokens == expected.cached_tokens > 40
        after = chat.send("Why?").result()
        assert (after.disk_tokens, after.cached_tokens > end.cached_tokens) == (0, True)


def test_the_words_alone(letters_folder: Path, tmp_path: Path) -> None:
    """For whoever saves often; a KV cache that is there serves as far as it goes."""
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        chat = talk(engine)
        written = chat.save(path, kv=False).result(600)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert written == path.stat().st_size
        engine.generate("A request of nobody's conversation", options=SHORT).result()
        chat.save(path).result(600)
        kept = kv_path(path).read_bytes()
        chat.send("And then?").result()
        chat.save(path, kv=False).result(600)
        messages = chat.messages
        assert kv_path(path).read_bytes() == kept
    with load(letters_folder) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        assert chat.messages == messages
        end = chat.send("Why?").result()
        assert 40 < end.disk_tokens < end.prompt_tokens


def test_with_a_picture(seeing_folder: Path, tmp_path: Path, seed: int) -> None:
    path = tmp_path / "talk"
    photo = Photo(60, 40, seed).image
    with load(seeing_folder) as engine:
        chat = engine.chat(options=of_digits(engine, SHORT))
        chat.send("What is this?", images=[photo]).result()
        chat.save(path).result(600)
        expected = chat.send("And then?").result()
    with load(seeing_folder) as engine:
        chat = engine.chat(options=of_digits(engine, SHORT), restore=path)
        assert chat.messages[0].images[0].pixels().tobytes() == photo.tobytes()
        end = chat.send("And then?").result()
        assert end.tokens == expected.tokens
        assert end.images_encoded == end.images_reused == 0
        assert end.disk_tokens == expected.cached_tokens


def test_closing_waits_for_what_is_being_saved(letters_folder: Path, tmp_path: Path) -> None:
    with load(letters_folder) as engine:
        chat = talk(engine)
        under_way = engine.generate("Once", options=GenerationOptions(max_tokens=400))
        future = chat.save(tmp_path / "talk")
    assert under_way.result().finish_reason in ("cancelled", "length")
    assert future.result(0) > 0
    assert kv_path(tmp_path / "talk").exists()


def test_saving_while_it_answers(letters_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        chat = talk(engine)
        messages = chat.messages
        options = GenerationOptions(max_tokens=4)
        with held(engine, lambda: chat.send("Go on.", options=options)) as generation:
            saved = chat.save(path)
            assert not generation.done
        saved.result(600)
        generation.result()
        fresh = engine.chat(options=SHORT, restore=path)
        assert fresh.messages == messages
        cold = engine.generate(
            [*messages, {"role": "user", "content": "Why?"}], options=SHORT
        ).result()
        assert fresh.send("Why?").result().tokens == cold.tokens


def test_another_model_s_cache_beside_a_conversation(
    letters_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The words are anybody's, the KV cache is not."""
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        chat = talk(engine)
        chat.save(path).result(600)
    other = tiny.save_of_letters(10, tmp_path / "other")
    with load(other) as engine:
        restored = engine.chat(options=SHORT, restore=path)
        assert restored.messages == chat.messages
        assert restored.send("Why?").result().cached_tokens == 0
    assert not kv_path(path).exists()
    assert sum("another model" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "not JSON",
        '{"format": "sightline-conversation-9"}',
        '{"format": "sightline-conversation-1", "messages": [1], "pictures": {}}',
        '{"format": "sightline-conversation-1", "messages": [{"role": "user", "text": "x",'
        ' "tokens": [-1], "pictures": []}], "pictures": {}}',
        '{"format": "sightline-conversation-1", "messages": [{"role": "user", "text": "x",'
        ' "tokens": [], "pictures": ["gone"]}], "pictures": {}}',
        '{"format": "sightline-conversation-1", "messages": [], "pictures": {"a": "%%"}}',
        '{"format": "sightline-conversation-1", "messages": [], "pictures": {"a": "AAAA"}}',
        "[" * 100_000,
    ],
)
def test_what_is_no_conversation(tiny_engine: Engine, tmp_path: Path, content: str) -> None:
    path = tmp_path / "talk"
    path.write_text(content)
    with pytest.raises(ConversationFileError, match="left as it is"):
        tiny_engine.chat(restore=path)
    assert path.read_text() == content


def test_bad_requests(tiny_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConversationFileError, match="cannot be read"):
        tiny_engine.chat(restore=tmp_path / "none")
    with pytest.raises(ConversationFileError, match="cannot be read"):
        tiny_engine.chat(restore=tmp_path)
    os.mkfifo(kv_path(tmp_path / "talk"))  # reading it would wait for somebody to write
    (tmp_path / "talk").write_text("x")
    with pytest.raises(PromptError, match="system"):
        tiny_engine.chat(system="You are new.", restore=tmp_path / "talk")
    chat = tiny_engine.chat()
    for wrong in (5, "/", "~nobody-of-this-name/talk", "a\0b"):
        with pytest.raises(ConversationFileError):
            chat.save(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConversationFileError):
            tiny_engine.chat(restore=wrong)  # type: ignore[arg-type]
    for nowhere in ("x" * 300, tmp_path / "talk" / "below"):
        with pytest.raises(ConversationFileError, match="cannot be written"):
            chat.save(nowhere).result(600)
    with pytest.raises(ConversationFileError, match="cannot be written"):
        chat.save(tmp_path / "no such folder" / "talk").result(600)
    (tmp_path / "file").write_text("x")
    for wrong in (5, "a\0b", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match="cache_dir"):
            load(tmp_path, cache_dir=wrong)  # type: ignore[arg-type]
    for number in (-1, 1.5, True):
        with pytest.raises(OptionError, match="cache_dir_bytes"):
            load(tmp_path, cache_dir_bytes=number)  # type: ignore[arg-type]


def test_an_empty_conversation(tiny_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    tiny_engine.chat(system="You are brief.").save(path).result(600)
    assert [m.text for m in tiny_engine.chat(restore=path).messages] == ["You are brief."]
    assert json.loads(path.read_text())["messages"][0]["role"] == "system"
    assert path.stat().st_mode & 0o077 == 0
    assert not kv_path(path).exists()


def test_pictures_are_saved_as_they_came(tiny_engine: Engine, tmp_path: Path, seed: int) -> None:
    from engine import conversation_file
    from engine.prompts.messages import Message, load_pictures

    jpeg = tmp_path / "photo.jpg"
    Photo(64, 48, seed).image.save(jpeg, quality=50)
    drawn = Photo(20, 30, seed).image
    pictures = load_pictures([jpeg, drawn])
    conversation_file.write(
        tmp_path / "talk", [Message("user", (*pictures, "Look")), Message("assistant", "Yes")]
    )
    read, _ = conversation_file.read(tmp_path / "talk")
    assert read.images == pictures
    assert read.images[0].encoded() == jpeg.read_bytes()
    damaged = json.loads((tmp_path / "talk").read_text())
    damaged["pictures"][pictures[0].digest] = damaged["pictures"][pictures[0].digest][:400]
    (tmp_path / "talk").write_text(json.dumps(damaged))
    with pytest.raises(ConversationFileError) as raised:
        tiny_engine.chat(restore=tmp_path / "talk")
    assert isinstance(raised.value.__cause__, ImageError)


def test_a_link_stays_one(letters_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "talk")
    with load(letters_folder) as engine:
        talk(engine).save(tmp_path / "link").result(600)
        assert engine.chat(restore=tmp_path / "link").messages
    assert (tmp_path / "link").is_symlink()
    assert kv_path(tmp_path / "talk").exists()


def test_whoever_waits_for_a_save(letters_folder: Path, tmp_path: Path) -> None:
    """Nothing that is done with the future holds up the threads that write and answer."""
    with load(letters_folder) as engine:
        chat = talk(engine)
        future = chat.save(tmp_path / "talk")
        assert not future.cancel()
        future.result(600)
        chat.save(tmp_path / "talk").result(600)
        closed = threading.Event()

        def close(_: object) -> None:
            engine.close()
            closed.set()

        chat.save(tmp_path / "talk").add_done_callback(close)
        assert closed.wait(600)


def test_a_file_that_cannot_be_read_now_stays(
    letters_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        talk(engine).save(path).result(600)

    def busy(*_: object) -> Any:
        raise OSError(24, "Too many open files")

    with load(letters_folder) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        monkeypatch.setattr(kv_file, "_digests", busy)
        assert chat.send("Why?").result().disk_tokens == 0
    assert kv_path(path).exists()


def test_restored_again_and_again(letters_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        talk(engine).save(path).result(600)
        for _ in range(5):
            chat = engine.chat(options=SHORT, restore=path)
        chat.send("Why?").result()
        assert len(engine._worker.memory.disk._named) == 1  # type: ignore[union-attr]
