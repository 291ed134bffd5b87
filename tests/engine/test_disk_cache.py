"""Conversations that outlive their engine: in a folder, and saved by name."""

import json
import logging
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import tiny
from PIL import Image

from engine import (
    ConversationFileError,
    Engine,
    EngineClosed,
    GenerationOptions,
    OptionError,
    PromptError,
    Request,
    kv_file,
    load,
)
from engine.kv_file import Contents
from engine.memory import kv_path
from vision_add_ons.errors import ImageError

SHORT = GenerationOptions(max_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    return tiny.save(tiny.text_model(7), tmp_path_factory.mktemp("tiny"), demo)


def talk(engine: Engine, turns: int = 2, **options: Any) -> Any:
    chat = engine.chat(options=GenerationOptions(max_tokens=8, **options))
    for i in range(turns):
        chat.send(f"Question {i}, about rivers?").result()
    return chat


def files(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.rglob("*.safetensors"))


def test_a_saved_conversation_goes_on(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(folder) as engine:
        chat = talk(engine)
        written = chat.save(path).result(60)
        assert written == path.stat().st_size + kv_path(path).stat().st_size
        assert engine.cache_stats()["disk_bytes_written"] == written
        messages = chat.messages
        expected = chat.send("And then?").result()
    with load(folder) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        assert chat.messages == messages
        end = chat.send("And then?").result()
        assert end.tokens == expected.tokens
        assert end.cached_tokens == end.disk_tokens == expected.cached_tokens > 40
        after = chat.send("Why?").result()
        assert (after.disk_tokens, after.cached_tokens > end.cached_tokens) == (0, True)


def test_with_a_picture(seeing_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    photo = Image.effect_noise((60, 40), 80).convert("RGB")
    with load(seeing_folder) as engine:
        chat = engine.chat(options=SHORT)
        chat.send("What is this?", images=[photo]).result()
        chat.save(path).result(60)
        expected = chat.send("And then?").result()
    with load(seeing_folder) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        assert chat.messages[0].pictures[0].pixels().tobytes() == photo.tobytes()
        end = chat.send("And then?").result()
        assert end.tokens == expected.tokens
        assert end.images_encoded == end.images_reused == 0
        assert end.disk_tokens == expected.cached_tokens


def test_closing_waits_for_what_is_being_saved(folder: Path, tmp_path: Path) -> None:
    with load(folder) as engine:
        chat = talk(engine)
        under_way = engine.generate("Once", options=GenerationOptions(max_tokens=400))
        future = chat.save(tmp_path / "talk")
    assert under_way.result().finish_reason in ("cancelled", "length")
    assert future.result(0) > 0
    assert kv_path(tmp_path / "talk").exists()
    with pytest.raises(EngineClosed):
        chat.save(tmp_path / "talk")


def test_saving_while_it_answers(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(folder) as engine:
        chat = talk(engine)
        messages = chat.messages
        generation = chat.send("Go on.", options=GenerationOptions(max_tokens=100))
        chat.save(path).result(60)
        generation.result()
        fresh = engine.chat(options=SHORT, restore=path)
        assert fresh.messages == messages
        cold = engine.generate(
            [*messages, {"role": "user", "content": "Why?"}], options=SHORT
        ).result()
        assert fresh.send("Why?").result().tokens == cold.tokens


@pytest.mark.parametrize("kv_bits", [None, 4])
def test_a_folder_keeps_conversations(folder: Path, tmp_path: Path, kv_bits: int | None) -> None:
    options: dict[str, Any] = {}
    if kv_bits is not None:
        folder = wide(tmp_path / "wide", folder)
        options = {"kv_bits": kv_bits, "quantized_kv_start": 0, "kv_group_size": 32}
    cache_dir = tmp_path / "cache"
    with load(folder, cache_dir=cache_dir) as engine:
        history = [*talk(engine, **options).messages, {"role": "user", "content": "Why?"}]
        assert engine.cache_stats()["disk_max_bytes"] == 8 * 2**30
    with load(folder) as engine:
        expected = talk(engine, **options).send("Why?").result()
    wanted = GenerationOptions(max_tokens=8, **options)
    with load(folder, cache_dir=cache_dir) as engine:
        stats = engine.cache_stats()
        assert stats["disk_conversations"] == 1
        assert stats["disk_bytes"] == sum(f.stat().st_size for f in files(cache_dir)) > 0
        assert stats["disk_bytes_written"] == 0
        end = engine.generate(history, options=wanted).result()
        assert end.tokens == expected.tokens
        assert end.disk_tokens == end.cached_tokens == expected.cached_tokens > 40
    if options:  # another precision is another cache
        with load(folder, cache_dir=cache_dir) as engine:
            assert engine.generate(history, options=SHORT).result().cached_tokens == 0


def wide(target: Path, demo: Path) -> Path:
    """A model whose heads can be quantized."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    return tiny.save(tiny.text_model(8, **sizes), target, demo)


def test_one_conversation_is_one_file(folder: Path, tmp_path: Path) -> None:
    history = [1, 5, 6]
    for _ in range(3):
        with load(folder, cache_dir=tmp_path) as engine:
            owner = object()
            for _ in range(2):
                end = engine.submit(Request(history, (), SHORT, owner)).result()
                history += [*end.tokens, 7, 8, 9]
        assert len(files(tmp_path)) == 1
    with load(folder, cache_dir=tmp_path) as engine:  # two go on from one file
        for word in (10, 11):
            end = engine.submit(Request([*history, word], (), SHORT, object())).result()
            assert end.cached_tokens > 50
    assert len(files(tmp_path)) == 2


def test_writes_take_twice_a_conversation_at_most(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    write = kv_file.write

    def counted(path: Path, contents: Contents, caches: Any) -> int:
        lengths.append(len(contents.key))
        return write(path, contents, caches)

    monkeypatch.setattr(kv_file, "write", counted)
    with load(folder, cache_dir=tmp_path) as engine:
        end = talk(engine, turns=12).last
    whole = end.prompt_tokens + len(end.tokens)
    assert lengths == sorted(lengths)
    assert whole <= lengths[-1] + 1
    # What it had at half of its length, a quarter and so on; and once more at the end.
    assert sum(lengths) <= 3 * whole
    assert len(lengths) > 2


def test_a_request_of_nobody_s_is_not_written(folder: Path, tmp_path: Path) -> None:
    with load(folder, cache_dir=tmp_path) as engine:
        for i in range(3):
            engine.generate(f"Request {i}: once upon a time", options=SHORT).result()
    assert files(tmp_path) == []


def test_what_memory_has_no_room_for_goes_to_the_disk(folder: Path, tmp_path: Path) -> None:
    with load(folder, cache_dir=tmp_path, cache_bytes=0) as engine:
        chat = engine.chat(options=SHORT)
        first = chat.send("Hello?").result()
        second = chat.send("Why?").result()
        assert engine.cache_stats()["conversations"] == 0
        assert second.disk_tokens >= first.prompt_tokens
    assert len(files(tmp_path)) == 1


def test_the_folder_stays_within_its_bound(folder: Path, tmp_path: Path) -> None:
    with load(folder, cache_dir=tmp_path) as engine:
        talk(engine)
    (first,) = files(tmp_path)
    size = first.stat().st_size
    foreign = tmp_path / ("0" * 32) / first.name
    theirs = tmp_path / "a-model" / "model.safetensors"
    for copy in (foreign, theirs):
        copy.parent.mkdir()
        shutil.copy(first, copy)
        os.utime(copy, (1, 1))  # used least recently
    with load(folder, cache_dir=tmp_path, cache_dir_bytes=int(2.5 * size)) as engine:
        talk(engine, turns=3)
        engine.chat(options=SHORT).send("Something else entirely").result()
    assert not foreign.exists()
    theirs.unlink()  # what is not ours is neither counted nor removed
    assert sum(f.stat().st_size for f in files(tmp_path)) <= 2.5 * size
    with load(folder, cache_dir=tmp_path / "none", cache_dir_bytes=size // 2) as engine:
        talk(engine)
    assert files(tmp_path / "none") == []


def test_another_model_s_folder_is_left_alone(folder: Path, tmp_path: Path, demo: Path) -> None:
    other = tiny.save(tiny.text_model(9), tmp_path / "other", demo)
    cache = tmp_path / "cache"
    for model in (folder, other, folder, other):
        with load(model, cache_dir=cache) as engine:
            end = talk(engine, turns=1).last
    assert end.disk_tokens > 0
    assert len(files(cache)) >= 2
    assert len(list(cache.iterdir())) == 2


def test_an_edited_model_is_another_one(folder: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(folder, edited)
    times = (edited / "model.safetensors").stat()
    with load(edited, cache_dir=tmp_path / "cache") as engine:
        talk(engine, turns=1)

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.self_attn.q_proj.weight"] *= 1.5

    tiny.edit_weights(edited, change)
    os.utime(edited / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    with load(edited, cache_dir=tmp_path / "cache") as engine:
        assert talk(engine, turns=1).last.cached_tokens == 0


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    path.write_bytes(b"%PDF-1.7 and so on" * 100)


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _foreign])
def test_a_damaged_file_is_never_trusted(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path, cache = tmp_path / "talk", tmp_path / "cache"
    with load(folder, cache_dir=cache) as engine:
        chat = talk(engine)
        chat.save(path).result(60)
        expected = chat.send("And then?").result()
    (kept,) = files(cache)
    damage(kept)
    damage(kv_path(path))
    caplog.set_level(logging.WARNING)
    with load(folder, cache_dir=cache) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        end = chat.send("And then?").result()
        assert end.tokens == expected.tokens
        assert end.cached_tokens == 0
        assert not kept.exists()
        assert not kv_path(path).exists()
    warnings = [r.getMessage() for r in caplog.records if "removed" in r.getMessage()]
    assert sorted(str(p) in w for w in warnings for p in (kept, kv_path(path))) == [0, 0, 1, 1]


def test_another_model_s_cache_beside_a_conversation(
    folder: Path, tmp_path: Path, demo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The words are anybody's, the KV cache is not."""
    path = tmp_path / "talk"
    with load(folder) as engine:
        chat = talk(engine)
        chat.save(path).result(60)
    other = tiny.save(tiny.text_model(10), tmp_path / "other", demo)
    with load(other) as engine:
        restored = engine.chat(options=SHORT, restore=path)
        assert restored.messages == chat.messages
        assert restored.send("Why?").result().cached_tokens == 0
    assert not kv_path(path).exists()
    assert sum("another model" in r.getMessage() for r in caplog.records) == 1


def test_leftovers_of_killed_processes(folder: Path, tmp_path: Path) -> None:
    with load(folder, cache_dir=tmp_path) as engine:
        talk(engine)
    (file,) = files(tmp_path)
    old, new = (file.with_name(f".{i:032x}.unfinished.safetensors") for i in range(2))
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    with load(folder, cache_dir=tmp_path) as engine:
        assert engine.cache_stats()["disk_conversations"] == 1
    assert files(tmp_path) == sorted([file, new])


def test_files_that_vanish(folder: Path, tmp_path: Path) -> None:
    with load(folder, cache_dir=tmp_path) as engine:
        talk(engine, turns=1)
    with load(folder, cache_dir=tmp_path) as engine:
        shutil.rmtree(tmp_path)  # by another process, or by hand
        assert talk(engine, turns=1).last.cached_tokens == 0
        assert engine.cache_stats()["disk_bytes"] == 0
    assert len(files(tmp_path)) == 1


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
def test_what_is_no_conversation(engine: Engine, tmp_path: Path, content: str) -> None:
    path = tmp_path / "talk"
    path.write_text(content)
    with pytest.raises(ConversationFileError, match="left as it is"):
        engine.chat(restore=path)
    assert path.read_text() == content


def test_bad_requests(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConversationFileError, match="cannot be read"):
        engine.chat(restore=tmp_path / "none")
    with pytest.raises(ConversationFileError, match="cannot be read"):
        engine.chat(restore=tmp_path)
    os.mkfifo(kv_path(tmp_path / "talk"))  # reading it would wait for somebody to write
    (tmp_path / "talk").write_text("x")
    with pytest.raises(PromptError, match="system"):
        engine.chat(system="You are new.", restore=tmp_path / "talk")
    chat = engine.chat()
    for wrong in (5, "/", "~nobody-of-this-name/talk", "a\0b"):
        with pytest.raises(ConversationFileError):
            chat.save(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConversationFileError):
            engine.chat(restore=wrong)  # type: ignore[arg-type]
    for nowhere in ("x" * 300, tmp_path / "talk" / "below"):
        with pytest.raises(ConversationFileError, match="cannot be written"):
            chat.save(nowhere).result(60)
    with pytest.raises(ConversationFileError, match="cannot be written"):
        chat.save(tmp_path / "no such folder" / "talk").result(60)
    (tmp_path / "file").write_text("x")
    for wrong in (5, "a\0b", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match="cache_dir"):
            load(tmp_path, cache_dir=wrong)  # type: ignore[arg-type]
    for number in (-1, 1.5, True):
        with pytest.raises(OptionError, match="cache_dir_bytes"):
            load(tmp_path, cache_dir_bytes=number)  # type: ignore[arg-type]


def test_an_empty_conversation(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    engine.chat(system="You are brief.").save(path).result(60)
    assert [m.text for m in engine.chat(restore=path).messages] == ["You are brief."]
    assert json.loads(path.read_text())["messages"][0]["role"] == "system"
    assert path.stat().st_mode & 0o077 == 0
    assert not kv_path(path).exists()


def test_pictures_are_saved_as_they_came(engine: Engine, tmp_path: Path) -> None:
    from engine import conversation_file
    from engine.messages import Message, load_pictures

    jpeg = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 60).convert("RGB").save(jpeg, quality=50)
    drawn = Image.effect_noise((20, 30), 60).convert("RGB")
    pictures = load_pictures([jpeg, drawn])
    conversation_file.write(tmp_path / "talk", [Message("user", "Look", pictures)])
    (read,) = conversation_file.read(tmp_path / "talk")
    assert read.pictures == pictures
    assert read.pictures[0].encoded() == jpeg.read_bytes()
    damaged = json.loads((tmp_path / "talk").read_text())
    damaged["pictures"][pictures[0].digest] = damaged["pictures"][pictures[0].digest][:400]
    (tmp_path / "talk").write_text(json.dumps(damaged))
    with pytest.raises(ConversationFileError) as raised:
        engine.chat(restore=tmp_path / "talk")
    assert isinstance(raised.value.__cause__, ImageError)


def test_a_link_stays_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "talk")
    with load(folder) as engine:
        talk(engine).save(tmp_path / "link").result(60)
        assert engine.chat(restore=tmp_path / "link").messages
    assert (tmp_path / "link").is_symlink()
    assert kv_path(tmp_path / "talk").exists()


def test_whoever_waits_for_a_save(folder: Path, tmp_path: Path) -> None:
    """Nothing that is done with the future holds up the threads that write and answer."""
    with load(folder) as engine:
        chat = talk(engine)
        future = chat.save(tmp_path / "talk")
        assert not future.cancel()
        future.result(60)
        chat.save(tmp_path / "talk").result(60)
        closed = threading.Event()

        def close(_: object) -> None:
            engine.close()
            closed.set()

        chat.save(tmp_path / "talk").add_done_callback(close)
        assert closed.wait(60)


@pytest.mark.parametrize(
    "note",
    [
        {"borders": [float("inf")]},
        {"borders": [1.5]},
        {"key": [["a", 2**40]]},
        {"key": [["a", 2**23]] * 200},
        {"key": [[]]},
        {"variant": [4, "a", 0]},
        {"least": float("nan")},
        {"unknown": 1},
    ],
    ids=lambda note: str(note)[:40],
)
def test_a_crafted_file_stops_nothing(
    folder: Path, tmp_path: Path, note: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk"
    with load(folder) as engine:
        talk(engine).save(path).result(60)
        tensors, metadata = mx.load(str(kv_path(path)), return_metadata=True)
        metadata["0.note"] = json.dumps({**json.loads(metadata["0.note"]), **note})
        mx.save_safetensors(str(kv_path(path)), tensors, metadata)
        chat = engine.chat(options=SHORT, restore=path)
        assert chat.send("Why?").result(60).finish_reason
        assert not kv_path(path).exists()


def test_a_file_that_cannot_be_read_now_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk"
    with load(folder) as engine:
        talk(engine).save(path).result(60)

    def busy(*_: object) -> Any:
        raise OSError(24, "Too many open files")

    with load(folder) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        monkeypatch.setattr(kv_file, "_digests", busy)
        assert chat.send("Why?").result().disk_tokens == 0
    assert kv_path(path).exists()


def test_the_vocabulary_alone_touches_no_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(folder) as engine:
        talk(engine).save(path).result(60)
    with load(folder, vocab_only=True, cache_dir=tmp_path) as engine:
        assert engine.chat(restore=path).messages
    assert kv_path(path).exists()


def test_a_write_that_failed_is_made_up_for(folder: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with load(folder, cache_dir=tmp_path) as engine:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            talk(engine, turns=1)
            time.sleep(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files(tmp_path) == []
    assert len(files(tmp_path)) == 1


def test_restored_again_and_again(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(folder) as engine:
        talk(engine).save(path).result(60)
        for _ in range(5):
            chat = engine.chat(options=SHORT, restore=path)
        chat.send("Why?").result()
        assert len(engine._worker.memory.disk._named) == 1  # type: ignore[union-attr]
