"""Adapters in a running engine: its answers, and what is reused of its conversations."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.adapters import write_adapter
from support.short_chats import SHORT, talk

from engine import (
    AdapterError,
    EngineClosed,
    OptionError,
    RequestError,
    conversation_file,
    load,
)


def test_answers_and_caches(letters_folder: Path, tmp_path: Path, seed: int) -> None:
    adapter = write_adapter(letters_folder, tmp_path / "adapter", seed)
    with load(letters_folder, adapter=adapter) as engine:
        adapted = talk(engine).messages
    with load(letters_folder) as engine:
        chat = talk(engine)
        plain = chat.messages
        assert plain != adapted
        engine.load_adapter(adapter)
        question = [*chat.messages, {"role": "user", "content": "Why?"}]
        # What was computed without the adapter is worth nothing with it.
        end = engine.generate(question, options=SHORT).result()
        assert end.cached_tokens == 0
        assert talk(engine).messages == adapted
        again = engine.generate(question, options=SHORT).result()
        assert again.cached_tokens > 60
        assert again.tokens == end.tokens
        engine.unload_adapter()
        # And it is still there when the adapter goes.
        assert chat.send("Why?").result().cached_tokens > 60
        assert talk(engine).messages == plain


def test_files_are_of_one_adapter(letters_folder: Path, tmp_path: Path, seed: int) -> None:
    adapter, cache = write_adapter(letters_folder, tmp_path / "adapter", seed), tmp_path / "cache"
    with load(letters_folder, cache_dir=cache) as engine:
        messages = talk(engine).messages
        engine.load_adapter(adapter)
        adapted = talk(engine).messages
    assert len(list(cache.iterdir())) == 2
    with load(letters_folder, cache_dir=cache, adapter=adapter) as engine:
        for history, cached in ((messages, False), (adapted, True)):
            question = [*history, {"role": "user", "content": "Why?"}]
            end = engine.generate(question, options=SHORT).result()
            assert (end.disk_tokens > 60) == cached


def test_what_does_not_fit(letters_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="adapter_config"):
        load(letters_folder, adapter=tmp_path)
    with load(letters_folder) as engine:
        expected = talk(engine).messages
        for wrong in (tmp_path, "~nobody-of-this-name/x", "a\0b", 5):
            with pytest.raises(AdapterError):
                engine.load_adapter(wrong)  # type: ignore[arg-type]
        assert talk(engine).messages == expected
        engine.unload_adapter()
        errors: list[BaseException] = []

        def from_its_own_thread(_: object) -> None:
            try:
                engine.unload_adapter()
            except RequestError as error:
                errors.append(error)

        engine.generate("Once", options=SHORT)
        from engine import Request

        engine.submit(Request("Once", (), SHORT), from_its_own_thread).result()
        assert len(errors) == 1
    with pytest.raises(EngineClosed):
        engine.load_adapter(tmp_path)


def test_in_its_turn(letters_folder: Path, tmp_path: Path, seed: int) -> None:
    """Between the requests before it and those after it, from any thread."""
    adapter = write_adapter(letters_folder, tmp_path / "adapter", seed)
    with load(letters_folder) as engine:
        plain = engine.generate("Once upon", options=SHORT).result().tokens
        before = [engine.generate("Once upon", options=SHORT) for _ in range(3)]
        thread = threading.Thread(target=engine.load_adapter, args=(adapter,))
        thread.start()
        thread.join()
        after = engine.generate("Once upon", options=SHORT).result().tokens
        assert [generation.result().tokens for generation in before] == [plain] * 3
        assert after != plain


def test_a_cache_folder_that_is_gone(letters_folder: Path, tmp_path: Path, seed: int) -> None:
    """Then nothing changes: neither the decoder nor what is found for it."""
    adapter, cache = write_adapter(letters_folder, tmp_path / "adapter", seed), tmp_path / "cache"
    with load(letters_folder, cache_dir=cache) as engine:
        expected = engine.generate("Once upon a time", options=SHORT).result().tokens
        shutil.rmtree(cache)
        cache.write_text("in the way")
        with pytest.raises(OptionError, match="cache_dir"):
            engine.load_adapter(adapter)
        end = engine.generate("Once upon a time", options=SHORT).result()
        assert end.tokens == expected
        assert end.cached_tokens > 0
        cache.unlink()
        engine.load_adapter(adapter)
        assert engine.generate("Once upon a time", options=SHORT).result().cached_tokens == 0


def test_saves_of_one_path_in_their_order(
    letters_folder: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, path = write_adapter(letters_folder, tmp_path / "adapter", seed), tmp_path / "talk"
    write, slowly = conversation_file.write, [1.0, 0.0]

    def delayed(*arguments: Any) -> int:
        time.sleep(slowly.pop(0))
        return write(*arguments)

    monkeypatch.setattr(conversation_file, "write", delayed)
    with load(letters_folder) as engine:
        chat = talk(engine)
        first = chat.save(path)
        engine.load_adapter(adapter)
        chat.send("Why?").result()
        second = chat.save(path)
        first.result(600), second.result(600)
        assert engine.chat(restore=path).messages == chat.messages
