"""Conversations that a folder keeps for later engines."""

import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from support import tiny
from support.short_chats import SHORT, talk
from support.waiting import wait_for

from engine import (
    GenerationOptions,
    Request,
    load,
)
from engine.memory import kv_file
from engine.memory.kv_file import Contents
from engine.memory.memory import kv_path


def files(cache_dir: Path) -> list[Path]:
    return sorted(cache_dir.rglob("*.safetensors"))


@pytest.mark.parametrize("kv_bits", [None, 4])
def test_a_folder_keeps_conversations(
    letters_folder: Path, tmp_path: Path, kv_bits: int | None
) -> None:
    options: dict[str, Any] = {}
    if kv_bits is not None:
        letters_folder = wide(tmp_path / "wide")
        options = {"kv_bits": kv_bits, "quantized_kv_start": 0, "kv_group_size": 32}
    cache_dir = tmp_path / "cache"
    with load(letters_folder, cache_dir=cache_dir) as engine:
        history = [*talk(engine, **options).messages, {"role": "user", "content": "Why?"}]
        assert engine.cache_stats()["disk_max_bytes"] == 8 * 2**30
    with load(letters_folder) as engine:
        expected = talk(engine, **options).send("Why?").result()
    wanted = GenerationOptions(max_tokens=8, **options)
    with load(letters_folder, cache_dir=cache_dir) as engine:
        stats = engine.cache_stats()
        assert stats["disk_conversations"] == 1
        assert stats["disk_bytes"] == sum(f.stat().st_size for f in files(cache_dir)) > 0
        assert stats["disk_bytes_written"] == 0
        end = engine.generate(history, options=wanted).result()
        assert end.tokens == expected.tokens
        assert end.disk_tokens == end.cached_tokens == expected.cached_tokens > 40
    if options:  # another precision is another cache
        with load(letters_folder, cache_dir=cache_dir) as engine:
            assert engine.generate(history, options=SHORT).result().cached_tokens == 0


def wide(target: Path) -> Path:
    """A model whose heads can be quantized."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    return tiny.save_of_letters(8, target, **sizes)


def test_one_conversation_is_one_file(letters_folder: Path, tmp_path: Path) -> None:
    history = [1, 5, 6]
    for _ in range(3):
        with load(letters_folder, cache_dir=tmp_path) as engine:
            owner = object()
            for _ in range(2):
                end = engine.submit(Request(history, (), SHORT, owner)).result()
                history += [*end.tokens, 7, 8, 9]
        assert len(files(tmp_path)) == 1
    with load(letters_folder, cache_dir=tmp_path) as engine:  # two go on from one file
        for word in (10, 11):
            end = engine.submit(Request([*history, word], (), SHORT, object())).result()
            assert end.cached_tokens > 50
    assert len(files(tmp_path)) == 2


def test_writes_take_twice_a_conversation_at_most(
    letters_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    write = kv_file.write

    def counted(path: Path, contents: Contents, caches: Any) -> int:
        lengths.append(len(contents.key))
        return write(path, contents, caches)

    monkeypatch.setattr(kv_file, "write", counted)
    with load(letters_folder, cache_dir=tmp_path) as engine:
        end = talk(engine, turns=12).last
    whole = end.prompt_tokens + len(end.tokens)
    assert lengths == sorted(lengths)
    assert whole <= lengths[-1] + 1
    # What it had at half of its length, a quarter and so on; and once more at the end.
    assert sum(lengths) <= 3 * whole
    assert len(lengths) > 2


def test_a_request_of_nobody_s_is_not_written(letters_folder: Path, tmp_path: Path) -> None:
    with load(letters_folder, cache_dir=tmp_path) as engine:
        for i in range(3):
            engine.generate(f"Request {i}: once upon a time", options=SHORT).result()
    assert files(tmp_path) == []


def test_what_memory_has_no_room_for_goes_to_the_disk(letters_folder: Path, tmp_path: Path) -> None:
    with load(letters_folder, cache_dir=tmp_path, cache_bytes=0) as engine:
        chat = engine.chat(options=SHORT)
        first = chat.send("Hello?").result()
        second = chat.send("Why?").result()
        assert engine.cache_stats()["conversations"] == 0
        assert second.disk_tokens >= first.prompt_tokens
    assert len(files(tmp_path)) == 1


def test_the_folder_stays_within_its_bound(letters_folder: Path, tmp_path: Path) -> None:
    with load(letters_folder, cache_dir=tmp_path) as engine:
        talk(engine)
    (first,) = files(tmp_path)
    size = first.stat().st_size
    foreign = tmp_path / ("0" * 32) / first.name
    theirs = tmp_path / "a-model" / "model.safetensors"
    for copy in (foreign, theirs):
        copy.parent.mkdir()
        shutil.copy(first, copy)
        os.utime(copy, (1, 1))  # used least recently
    with load(letters_folder, cache_dir=tmp_path, cache_dir_bytes=int(2.5 * size)) as engine:
        talk(engine, turns=3)
        engine.chat(options=SHORT).send("Something else entirely").result()
    assert not foreign.exists()
    theirs.unlink()  # what is not ours is neither counted nor removed
    assert sum(f.stat().st_size for f in files(tmp_path)) <= 2.5 * size
    with load(letters_folder, cache_dir=tmp_path / "none", cache_dir_bytes=size // 8) as engine:
        talk(engine)
    assert files(tmp_path / "none") == []


@pytest.mark.parametrize("conversations", [1, 2])
def test_all_of_a_file_counts(letters_folder: Path, tmp_path: Path, conversations: int) -> None:
    """What it says of its caches too, which is written with them."""
    questions = ("Hello?", "Maybe!")  # of as many tokens
    with load(letters_folder, cache_dir=tmp_path / "all") as engine:
        for question in questions[:conversations]:
            engine.chat(options=SHORT).send(question).result()
    whole = sum(f.stat().st_size for f in files(tmp_path / "all"))
    cache = tmp_path / "bounded"
    with load(letters_folder, cache_dir=cache, cache_dir_bytes=whole - 100) as engine:
        for question in questions[:conversations]:
            engine.chat(options=SHORT).send(question).result()
    assert len(files(cache)) == conversations - 1


def test_another_model_s_folder_is_left_alone(letters_folder: Path, tmp_path: Path) -> None:
    other = tiny.save_of_letters(9, tmp_path / "other")
    cache = tmp_path / "cache"
    for model in (letters_folder, other, letters_folder, other):
        with load(model, cache_dir=cache) as engine:
            end = talk(engine, turns=1).last
    assert end.disk_tokens > 0
    assert len(files(cache)) >= 2
    assert len(list(cache.iterdir())) == 2


def test_an_edited_model_is_another_one(letters_folder: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(letters_folder, edited)
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
    letters_folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, cache = tmp_path / "talk", tmp_path / "cache"
    with load(letters_folder, cache_dir=cache) as engine:
        chat = talk(engine)
        chat.save(path).result(600)
        expected = chat.send("And then?").result()
    (kept,) = files(cache)
    damage(kept)
    damage(kv_path(path))
    caplog.set_level(logging.WARNING)
    with load(letters_folder, cache_dir=cache) as engine:
        chat = engine.chat(options=SHORT, restore=path)
        end = chat.send("And then?").result()
        assert end.tokens == expected.tokens
        assert end.cached_tokens == 0
        assert not kept.exists()
        assert not kv_path(path).exists()
    warnings = [r.getMessage() for r in caplog.records if "removed" in r.getMessage()]
    assert sorted(str(p) in w for w in warnings for p in (kept, kv_path(path))) == [0, 0, 1, 1]


def test_leftovers_of_killed_processes(letters_folder: Path, tmp_path: Path) -> None:
    with load(letters_folder, cache_dir=tmp_path) as engine:
        talk(engine)
    (file,) = files(tmp_path)
    old, new = (file.with_name(f".{i:032x}.unfinished.safetensors") for i in range(2))
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    with load(letters_folder, cache_dir=tmp_path) as engine:
        assert engine.cache_stats()["disk_conversations"] == 1
    assert files(tmp_path) == sorted([file, new])


def test_files_that_vanish(letters_folder: Path, tmp_path: Path) -> None:
    with load(letters_folder, cache_dir=tmp_path) as engine:
        asked = talk(engine, turns=1).messages[:1]
    with load(letters_folder, cache_dir=tmp_path) as engine:
        shutil.rmtree(tmp_path)  # by another process, or by hand
        # Nobody's, so that it is not written, sooner or later.
        end = engine.generate(asked, options=GenerationOptions(max_tokens=8)).result()
        assert end.cached_tokens == 0
        assert engine.cache_stats()["disk_bytes"] == 0
        talk(engine, turns=1)
    assert len(files(tmp_path)) == 1


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
    letters_folder: Path, tmp_path: Path, note: dict[str, Any]
) -> None:
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        talk(engine).save(path).result(600)
        tensors, metadata = mx.load(str(kv_path(path)), return_metadata=True)
        metadata["0.note"] = json.dumps({**json.loads(metadata["0.note"]), **note})
        mx.save_safetensors(str(kv_path(path)), tensors, metadata)
        chat = engine.chat(options=SHORT, restore=path)
        assert chat.send("Why?").result(600).finish_reason
        assert not kv_path(path).exists()


def test_the_vocabulary_alone_touches_no_file(letters_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with load(letters_folder) as engine:
        talk(engine).save(path).result(600)
    with load(letters_folder, vocab_only=True, cache_dir=tmp_path) as engine:
        assert engine.chat(restore=path).messages
    assert kv_path(path).exists()


def test_a_write_that_failed_is_made_up_for(
    letters_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with load(letters_folder, cache_dir=tmp_path) as engine:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            talk(engine, turns=1)
            wait_for(lambda: "a conversation is not kept" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files(tmp_path) == []
    assert len(files(tmp_path)) == 1
