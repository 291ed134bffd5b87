"""Names become folders: of this disk, of the hub's cache, or downloaded from a hub of our own."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import tiny
from support.tiny_hub import Repo, TinyHub, tiny_hub
from support.waiting import wait_for

from engine import GenerationOptions, load
from model_kit import download
from model_kit.hub import cached_folder, is_downloaded, resolve
from model_kit.models import KNOWN_MODELS
from vision_add_ons.errors import CheckpointNotFound, ModelUnavailable

WANTED = {"config.json", "chat_template.jinja", "merges.txt", "model.safetensors", "tokenizer.json"}
UNWANTED = {"README.md", "convert.py", "pytorch_model.bin", "consolidated.safetensors", "x.gguf"}
ID = "tiny/model"
SOON = 600.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    monkeypatch.setattr(download, "_CLEAN_UP_SECONDS", SOON)  # however slow the machine is
    with tiny_hub(cache, monkeypatch) as hub:
        yield hub


@pytest.fixture
def repo(hub: TinyHub, tmp_path: Path) -> Repo:
    """A model of small files, of which some have no place in a checkpoint."""
    folder = tmp_path / "of the hub"
    (folder / "onnx").mkdir(parents=True)
    for name in (*WANTED, *UNWANTED, "onnx/config.json"):
        (folder / name).write_text(f'{{"name": "{name}"}}')
    save_file({"x": np.arange(200_000.0)}, folder / "model.safetensors")
    hub.repos[ID] = Repo(folder)
    return hub.repos[ID]


def reason(model: str | Path, error: type[Exception] = ModelUnavailable) -> str:
    """Why it is not had; the message is one line."""
    with pytest.raises(error) as raised:
        resolve(model)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def left_over(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


# --- on this disk ------------------------------------------------------------------------------


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "model@home"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(str(folder)) == resolve(folder) == folder
    assert resolve("~/org/model@home") == folder
    assert resolve("org/model@home") == resolve("./org/model@home") == Path("org/model@home")
    (tmp_path / "qwen2-vl-2b").mkdir()
    assert resolve("qwen2-vl-2b") == Path("qwen2-vl-2b")


def test_demo(demo: Path, seeing_demo: Path) -> None:
    assert resolve("smollm2") == demo
    assert resolve("demo") == seeing_demo
    assert is_downloaded(KNOWN_MODELS["smollm2"])
    assert is_downloaded(KNOWN_MODELS["demo"])


@pytest.mark.parametrize(
    "model",
    ["./nowhere", "../org/name", "~/nowhere", "/nowhere", "a/b/c", "nowhere/", Path("org/name")],
)
def test_paths_to_nowhere(model: str | Path) -> None:
    assert "there is no folder" in reason(model, CheckpointNotFound)


def test_a_file_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    assert "there is no folder model.gguf" in reason("model.gguf", CheckpointNotFound)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("Qwen-2-VL-2B", "did you mean qwen2-vl-2b"),
        ("gema3-4b", "did you mean gemma3-4b"),
        ("gpt-5", "no folder 'gpt-5'; `sightline models` lists the names"),
        ("demo@main", "did you mean demo? "),
        ("", "no folder ''"),
        ("a\0b", "no folder 'a\\x00b'"),
    ],
)
def test_unknown_names(model: str, hint: str) -> None:
    said = reason(model, CheckpointNotFound)
    assert hint in said
    assert "sightline models" in said


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("org/na me", "a name that a model can have"),
        ("org/a--b", "a name that a model can have"),
        ("org/" + "x" * 200, "a name that a model can have"),
        ("org/name@", "'' cannot be a revision"),
        ("org/name@../../x", "cannot be a revision"),
        ("org/name@/etc/passwd", "cannot be a revision"),
        ("qwen2-vl-2b@a b", "'a b' cannot be a revision"),
    ],
)
def test_what_no_hub_has(model: str, hint: str) -> None:
    assert hint in reason(model, CheckpointNotFound)


# --- downloads ---------------------------------------------------------------------------------


def test_a_downloaded_model_answers(hub: TinyHub, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "model"
    tiny.save_of_few_words(tiny.of_few_words(seed), folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    known = KNOWN_MODELS["qwen2-vl-2b"]
    assert known.checkpoint is not None
    hub.repos[known.checkpoint] = Repo(folder)
    assert not is_downloaded(known)
    stages = []
    short = GenerationOptions(max_tokens=4)
    with load(known.name, progress=lambda *report: stages.append(report)) as engine:
        tokens = engine.generate("w9 w10", options=short).result().tokens
    with load(folder) as engine:
        assert engine.generate("w9 w10", options=short).result().tokens == tokens
    assert is_downloaded(known)
    bytes_done = [done for stage, done, _ in stages if stage == "download model"]
    assert stages[0] == ("ask the hub", 0, 1)
    assert bytes_done == sorted(bytes_done)
    assert bytes_done[-1] == sum(file.stat().st_size for file in folder.iterdir())
    assert {total for stage, _, total in stages if stage == "download model"} == {bytes_done[-1]}
    assert stages[-1][0] == "load decoder"


def test_what_is_downloaded(hub: TinyHub, repo: Repo, cache: Path) -> None:
    threads = set()
    folder = resolve(ID, lambda *_: threads.add(threading.current_thread()))
    assert {file.name for file in folder.rglob("*")} == hub.downloaded() == WANTED
    assert all((folder / name).read_bytes() == (repo.folder / name).read_bytes() for name in WANTED)
    assert folder.is_relative_to(cache / "hub")  # where every program looks
    assert threads == {threading.current_thread()}
    assert left_over(cache) == []


def test_weights_that_come_by_xet(hub: TinyHub, repo: Repo, cache: Path) -> None:
    repo.move_to_xet("model.safetensors", cache / "store")
    reports = []
    folder = resolve(ID, lambda *report: reports.append(report))
    whole = sum(len((repo.folder / name).read_bytes()) for name in WANTED)
    assert reports[-1] == ("download model", whole, whole)
    assert hub.downloaded() == WANTED - {"model.safetensors"}
    weights = (folder / "model.safetensors").read_bytes()
    assert weights == (repo.folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("in_this_process")
def test_revisions(hub: TinyHub, repo: Repo) -> None:
    repo.revisions["refs/pr/1"] = "b" * 40
    newest = resolve(ID)
    other = resolve(f"{ID}@refs/pr/1")
    assert (newest.name, other.name) == ("a" * 40, "b" * 40)
    assert resolve(f"{ID}@{'b' * 40}") == other
    assert "no revision 'v9'" in reason(f"{ID}@v9")


def test_without_a_network(hub: TinyHub, repo: Repo, cache: Path) -> None:
    folder = resolve(ID)
    asked = len(hub.requests)
    reports: list[object] = []
    assert resolve(ID, lambda *report: reports.append(report)) == folder
    assert (len(hub.requests), reports) == (asked, [])
    hub.close()
    assert resolve(ID) == folder
    # As older versions of the hub's library leave it, which note down nothing.
    other = cache / "hub" / "models--tiny--other"
    shutil.copytree(folder.parents[1], other, symlinks=True)
    shutil.rmtree(other / "trees")
    assert cached_folder("tiny/other") == other / "snapshots" / folder.name


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("noted", [True, False])
def test_what_is_missing_is_downloaded(hub: TinyHub, repo: Repo, cache: Path, noted: bool) -> None:
    folder = resolve(ID)
    (folder / "config.json").resolve().unlink()
    (folder / "config.json").unlink()
    if not noted:
        shutil.rmtree(folder.parents[1] / "trees")
    hub.requests.clear()
    assert cached_folder(ID) is None
    assert resolve(ID) == folder
    assert hub.downloaded() == {"config.json"}


@pytest.mark.usefixtures("in_this_process")
def test_a_missing_shard_is_noticed(hub: TinyHub, repo: Repo) -> None:
    folder = resolve(ID)
    shutil.rmtree(folder.parents[1] / "trees")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "model.safetensors"}}')
    assert cached_folder(ID) == folder
    index.write_text('{"weight_map": {"x": "model.safetensors", "y": "model-2.safetensors"}}')
    assert cached_folder(ID) is None
    index.write_text('{"weight_map": {"x": ["model.safetensors"]}}')
    assert cached_folder(ID) is None
    index.write_text("{")
    assert cached_folder(ID) is None


# --- downloads that fail -----------------------------------------------------------------------


def test_no_hub_there(hub: TinyHub, repo: Repo) -> None:
    hub.close()
    said = reason(ID)
    assert f"{hub.url} cannot be reached" in said
    assert "refused" in said
    assert "give the folder" in said


def test_offline_by_wish(hub: TinyHub, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in reason(ID)
    assert hub.requests == []


@pytest.mark.usefixtures("in_this_process")
def test_no_such_model(hub: TinyHub) -> None:
    said = reason("tiny/nothing")
    assert f"no public model of that name at {hub.url}" in said
    assert "there is no folder tiny/nothing" in said


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, "GatedRepo", "accept its terms"),
        (403, "GatedRepo", "accept its terms"),
        (401, "RepoNotFound", "log in with `hf auth login` if it is private"),
        (403, "", "denies tiny/model to you (HTTP 403); log in with `hf auth login`"),
    ],
)
def test_models_that_are_not_for_all(repo: Repo, status: int, code: str, hint: str) -> None:
    repo.denied = (status, code)
    assert hint in reason(ID)


def test_a_hub_out_of_order(hub: TinyHub, repo: Repo) -> None:
    hub.status = 503
    assert "cannot serve tiny/model now (HTTP 503); try again later" in reason(ID)


@pytest.mark.usefixtures("in_this_process")
def test_more_than_the_disk_holds(hub: TinyHub, repo: Repo) -> None:
    repo.sizes["model.safetensors"] = 10**18
    said = reason(ID)
    assert "needs 1000000000.0 GB" in said
    assert "free some space" in said
    assert hub.downloaded() == set()


def test_a_cache_that_cannot_be_written(
    hub: TinyHub, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    said = reason(ID)
    assert "cannot be saved in" in said
    assert "HF_HOME" in said


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("without", ["config.json", "model.safetensors"])
def test_what_is_no_checkpoint(hub: TinyHub, repo: Repo, without: str) -> None:
    (repo.folder / without).unlink()
    assert "is not a checkpoint with a config.json and model.safetensors" in reason(ID)
    assert hub.downloaded() == set()


def test_a_process_that_breaks_off(
    hub: TinyHub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "soon")  # the hub's library fails to load
    assert "the download of tiny/model broke off" in reason(ID)


# --- downloads that are cancelled --------------------------------------------------------------


class Enough(Exception):
    pass


def test_cancelled_in_the_middle_of_a_file(hub: TinyHub, repo: Repo, cache: Path) -> None:
    hub.stall = "model.safetensors"

    def report(*_: object) -> None:
        if hub.stalled.is_set():
            raise Enough

    with pytest.raises(Enough):  # and the rest is not waited for: it never comes
        resolve(ID, report)
    assert left_over(cache) == []
    assert cached_folder(ID) is None
    hub.resumed.set()
    before = hub.downloaded() - {"model.safetensors"}
    hub.requests.clear()
    assert resolve(ID).is_dir()
    assert before
    assert not before & hub.downloaded()  # what was whole is kept


def test_cancelled_while_an_engine_loads(hub: TinyHub, repo: Repo, cache: Path) -> None:
    """As the command line does it after Ctrl-C."""
    hub.stall = "model.safetensors"

    def report(*_: object) -> None:
        if hub.stalled.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(ID, progress=report)
    assert left_over(cache) == []


SCRIPT = f"""
import sys
from model_kit.hub import resolve
class Enough(Exception): pass
def report(stage, done, total):
    if sys.argv[1:] == ["cancel"] and done:
        raise Enough
print(resolve("{ID}", report))
"""


def test_a_download_ends_with_the_process_that_asked_for_it(
    hub: TinyHub, repo: Repo, cache: Path
) -> None:
    hub.stall = "model.safetensors"
    with subprocess.Popen([sys.executable, "-c", SCRIPT]) as process:
        wait_for(hub.stalled.is_set)
        assert left_over(cache)
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not left_over(cache))


def test_inside_a_frozen_application(hub: TinyHub, repo: Repo, cache: Path) -> None:
    """There is no Python to start, so all happens in its own process."""
    frozen = "import sys; sys.frozen = True; sys.executable = '/Applications/App'\n" + SCRIPT
    command = [sys.executable, "-c", frozen]
    cancelled = subprocess.run([*command, "cancel"], capture_output=True, text=True)
    assert cancelled.stderr.splitlines()[-1].endswith("Enough")
    assert cached_folder(ID) is None
    assert left_over(cache) == []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == str(cached_folder(ID))


def test_what_a_failed_import_left_in_the_path(
    hub: TinyHub, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenCV's does where the system lacks a library: the inside of a package."""
    (tmp_path / "__init__.py").touch()
    (tmp_path / "typing.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve(ID, lambda *_: None) == cached_folder(ID)
