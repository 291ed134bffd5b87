"""Downloading a checkpoint from the Hugging Face hub into the hub's own local cache.

It runs in a process of its own: hf_xet, which the hub serves most models through, cannot be
stopped from within a process without stopping all of that process's transfers.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from model_kit.demo import Progress
from vision_add_ons.errors import ModelUnavailable
from vision_add_ons.libraries import is_package

CHECKPOINT_FILES: dict[str, Any] = {
    "allow_patterns": ["*.json", "*.jinja", "*.txt", "model*.safetensors", "tokenizer.model"],
    "ignore_patterns": ["*/*"],
}
"""What belongs to a checkpoint: no pickles, no programs, no second copy of the weights.

No more than mlx-lm and mlx-vlm download, so that what they have put into the cache is complete.
"""
_HEARTBEAT = 0.2
_CLEAN_UP_SECONDS = 4.0
_FOLDER_INSTEAD = "or give the folder of a model"

Count = Callable[[int, int], None]
"""Told the bytes that are there, and how many there will be; 0 until that is known."""


def download(repo: str, revision: str | None, report: Progress) -> Path:
    """Download what the cache lacks of a model, and return its folder there.

    `report(stage, done, total)` is called from this thread, several times a second, with the
    stages "ask the hub" (0 of 1) and "download model" (in bytes). What it raises cancels the
    download and is passed on; files that were whole by then are kept. Inside a frozen application,
    which can start no Python, it may be called from other threads, and may cancel only after the
    file at work. Raises `ModelUnavailable`.
    """

    def count(done: int, total: int) -> None:
        stage = ("download model", done, total) if total else ("ask the hub", 0, 1)
        report(*stage)

    program = os.path.basename(sys.executable or "")
    if getattr(sys, "frozen", False) or not program.startswith("python"):
        return _fetch(repo, revision, count)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "model_kit.download", repo, *([revision] if revision else [])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_places())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches it by way of `report` alone
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            told = json.loads(line)
            if "error" in told:
                raise ModelUnavailable(told["error"])
            if "folder" in told:
                return Path(told["folder"])
            count(told["done"], told["total"])
    finally:
        _end(process)
    raise ModelUnavailable(f"the download of {repo} broke off; try again, {_FOLDER_INSTEAD}")


def _places() -> list[str]:
    """Where this process finds modules, for another one."""
    return [place for place in sys.path if place and not is_package(place)]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it if it still runs, with time to remove the file that it was writing."""
    process.terminate()
    try:
        process.wait(_CLEAN_UP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        assert process.stdout is not None
        process.stdout.close()


def _main(repo: str, revision: str | None = None) -> None:
    """The process: lines of JSON on standard output, its progress and at last the outcome."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    state = {"done": 0, "total": 0}
    ended = threading.Event()

    def tell(outcome: dict[str, Any]) -> None:
        print(json.dumps(outcome), file=out, flush=True)

    def beat() -> None:
        with suppress(BrokenPipeError):
            tell(state)
            while not ended.wait(_HEARTBEAT):
                tell(state)
            return
        os.kill(os.getpid(), signal.SIGTERM)  # nobody waits for this any more

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        folder = _fetch(repo, revision, lambda done, total: state.update(done=done, total=total))
        outcome = {"folder": str(folder)}
    except ModelUnavailable as error:
        outcome = {"error": str(error)}
    ended.set()
    heart.join()
    tell(state)
    tell(outcome)


def _fetch(repo: str, revision: str | None, count: Count) -> Path:
    """Download file by file in this thread. Raises `ModelUnavailable`, or what `count` raises."""
    from huggingface_hub import (
        HfApi,
        constants,
        hf_hub_download,
        snapshot_download,
        try_to_load_from_cache,
    )
    from huggingface_hub.utils import filter_repo_objects
    from tqdm import tqdm

    done = total = 0
    stop: BaseException | None = None

    def tell() -> None:
        nonlocal stop
        try:
            count(min(done, total), total)
        except BaseException as error:
            stop = error
            raise

    class Bar(tqdm):
        """Shows nothing, and counts the bytes that are written."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            done += int(n or 0)
            tell()

        def update_transfer(self, n: float | None = 1) -> None:
            """The bytes that xet receives, which may be fewer than it writes."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

    tell()
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = list(filter_repo_objects(sizes, **CHECKPOINT_FILES))
        _check_checkpoint(repo, wanted)
        wanted = [
            name
            for name in wanted
            if not isinstance(try_to_load_from_cache(repo, name, revision=info.sha), str)
        ]
        total = sum(sizes[name] for name in wanted)
        _check_space(repo, total, Path(constants.HF_HUB_CACHE))
        there = 0
        for name in wanted:
            hf_hub_download(repo, name, revision=info.sha, tqdm_class=Bar)
            there += sizes[name]
            done = there
            tell()
        # Nothing is left to download; this notes down what the revision is and that it is whole.
        return Path(snapshot_download(repo, revision=revision, **CHECKPOINT_FILES))
    except Exception as error:
        if stop is not None:
            raise stop  # noqa: B904 - whatever became of it on its way
        if isinstance(error, ModelUnavailable):
            raise
        raise ModelUnavailable(_explain(repo, revision, error)) from error


def _check_checkpoint(repo: str, files: list[str]) -> None:
    if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
        raise ModelUnavailable(
            f"{repo} is not a checkpoint with a config.json and model.safetensors, the only kind "
            "that can be loaded (pickles and GGUF cannot); choose another conversion of the model"
        )


def _check_space(repo: str, needed: int, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise ModelUnavailable(
            f"{repo} needs {needed / 1e9:.1f} GB in {cache}, which has {free / 1e9:.1f} GB free; "
            "free some space, or point HF_HOME to another disk"
        )


def _explain(repo: str, revision: str | None, error: BaseException) -> str:
    """What went wrong, and what to do about it."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the hub could not be asked
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is gated; accept its terms at {hub}/{repo}, log in with `hf auth login`, and "
            "try again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no folder {repo} here, and no public model of that name at {hub}; check "
            "the spelling, or log in with `hf auth login` if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; see {hub}/{repo}, or leave the revision out"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{repo} is not complete in {cache}, and HF_HUB_OFFLINE forbids downloading it; unset "
            f"that, {_FOLDER_INSTEAD}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"{hub} denies {repo} to you (HTTP {status}); log in with `hf auth login`"
        return f"{hub} cannot serve {repo} now (HTTP {status}); try again later, {_FOLDER_INSTEAD}"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, errors.HTTPError | errors.LocalEntryNotFoundError):
        return (
            f"{repo} is not complete in {cache}, and {hub} cannot be reached ({reason}); check "
            f"the network, {_FOLDER_INSTEAD}"
        )
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{repo} cannot be saved in {cache}: {error.strerror}; make that folder writable or "
            "free some space, or point HF_HOME elsewhere"
        )
    return f"{repo} could not be downloaded ({type(error).__name__}: {reason}); try again"


if __name__ == "__main__":
    _main(*sys.argv[1:])
