"""The engine's thread outlives what it is given; should it end all the same, so does what waits."""

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from engine import (
    EngineClosed,
    EngineFailed,
    GenerationOptions,
    OptionError,
    Request,
    RequestError,
    load,
)

SHORT = GenerationOptions(max_tokens=3)
WAIT = 600


def exits(*_: Any) -> None:
    raise SystemExit


def refuses(*_: Any) -> None:
    raise OSError("no space left on the device")


def test_a_thread_that_dies_ends_all_that_waits(letters_folder: Path, tmp_path: Path) -> None:
    engine = load(letters_folder)
    worker, chat = engine._worker, engine.chat("Be short.")
    # What some apps do to threads: it is raised when the thread, which waits, runs Python again.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(worker.thread.ident or 0), ctypes.py_object(SystemExit)
    )
    ends: list[Any] = []
    with worker._changed:
        waiting = [engine.submit(Request("abc"), on_finish=ends.append) for _ in range(2)]
        task = worker.call(lambda memory: None)
        saved = chat.save(tmp_path / "talk")
    for generation in waiting:
        with pytest.raises(EngineFailed, match="load the model again") as failed:
            generation.result(WAIT)
        assert isinstance(failed.value.__cause__, SystemExit)
        assert [event.finish_reason for event in generation] == ["error"]  # type: ignore[union-attr]
    assert [end.finish_reason for end in ends] == ["error", "error"]
    assert isinstance(task.exception(WAIT), EngineFailed)
    assert saved.result(WAIT) == (tmp_path / "talk").stat().st_size
    later: list[Callable[[], object]] = [
        lambda: engine.submit(Request("abc")),
        lambda: chat.send("Hi"),
        lambda: engine.generate("abc"),
        engine.unload_adapter,
    ]
    for call in later:
        with pytest.raises(EngineFailed):
            call()
    assert chat.save(tmp_path / "talk").result(0) > 0
    engine.close()
    with load(letters_folder) as other:
        assert other.chat(restore=tmp_path / "talk").messages == chat.messages


def test_what_goes_wrong_between_answers_ends_nothing(
    letters_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with load(letters_folder, cache_dir=tmp_path) as engine:
        assert isinstance(engine._worker.call(exits).exception(WAIT), SystemExit)
        with engine._worker._changed:  # so that the callback is there before the task has ended
            engine._worker.call(lambda memory: None).add_done_callback(exits)
        assert engine._worker.memory is not None
        engine._worker.memory.prompts.keep_grown = refuses  # type: ignore[method-assign]
        for _ in range(2):
            assert engine.generate("abc", options=SHORT).result(WAIT).answer
    assert "KV caches could not be written to the disk" in caplog.text


@pytest.mark.parametrize("cancel", [lambda: False, 5, True, threading.Event])
def test_what_cancels_is_an_event(letters_folder: Path, cancel: Any) -> None:
    with load(letters_folder) as engine:
        chat = engine.chat(options=SHORT)
        for call in (
            lambda: engine.submit(Request("abc"), cancel=cancel),
            lambda: chat.send("Hi", cancel=cancel),
            lambda: load(letters_folder, cancel=cancel),
        ):
            with pytest.raises(OptionError, match=r"^cancel must be a threading\.Event, not "):
                call()
        assert chat.send("Hi").result(WAIT)


@pytest.mark.parametrize("client", [[1], {}, (1, [2])])
def test_clients_can_be_told_apart(client: Any) -> None:
    with pytest.raises(RequestError, match=r"^client must be hashable"):
        Request("abc", client=client)


def test_what_is_cancelled_before_it_begins_waits_for_no_turn(letters_folder: Path) -> None:
    stop, go_on = threading.Event(), threading.Event()
    stop.set()
    with load(letters_folder) as engine:
        engine._worker.call(lambda memory: go_on.wait(WAIT))
        cancelled = engine.submit(Request("abc"), cancel=stop)
        assert cancelled.result(WAIT).finish_reason == "cancelled"
        go_on.set()
        assert engine.generate("abc", options=SHORT).result(WAIT)
    with pytest.raises(EngineClosed):
        engine.submit(Request("abc"), cancel=stop)


def test_a_chat_is_saved_while_others_are_answered(tmp_path: Path) -> None:
    folder = tiny.save_of_letters(7, tmp_path / "model", max_position_embeddings=2**20)
    with load(folder, parallel=2) as engine:
        chat = engine.chat(options=SHORT)
        chat.send("Hello").result(WAIT)
        endless = GenerationOptions(max_tokens=2**19, logit_bias={2: -100})
        other = engine.generate("abc", options=endless)
        next(other)
        assert chat.save(tmp_path / "talk").result(WAIT) > 0
        other.cancel()
        assert other.result(WAIT).finish_reason == "cancelled"  # it had not ended before
