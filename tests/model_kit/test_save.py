"""Checkpoints that are written: whole, or not at all, and never over what they were made of."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from support.processes import python

from engine import BrokenWeights, CheckpointError, SaveError
from model_kit import convert, load_model_kit, quantize
from model_kit.files import LEFTOVER_SECONDS, replacing_folder
from model_kit.safetensors_writer import DTYPES, write_safetensors


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def file_limit(nbytes: int) -> Iterator[None]:
    """As if the disk were full after so many bytes of one file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def interrupt(stage: str, done: int, total: int) -> None:
    if done > total // 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("cause", ["disk full", "no room", "Ctrl-C"])
def test_what_goes_wrong_leaves_nothing(
    few_words_folder: Path,
    tmp_path: Path,
    cause: str,
    earlier: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "target"
    if earlier:
        convert(few_words_folder, target)
    before = contents(tmp_path), contents(few_words_folder)
    options: dict[str, Any] = {"bits": 8, "overwrite": True}
    if cause == "Ctrl-C":
        with pytest.raises(KeyboardInterrupt):
            quantize(few_words_folder, target, **options, progress=interrupt)
    elif cause == "disk full":
        with file_limit(100_000), pytest.raises(SaveError, match="as it was"):
            quantize(few_words_folder, target, **options)
    else:

        class Usage(NamedTuple):
            total: int
            used: int
            free: int

        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 10**4))
        with pytest.raises(SaveError, match="free some space"):
            quantize(few_words_folder, target, **options)
    assert (contents(tmp_path), contents(few_words_folder)) == before
    assert [path.name for path in tmp_path.iterdir()] == (["target"] if earlier else [])


def test_an_earlier_target_is_replaced(few_words_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    convert(few_words_folder, target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(SaveError, match="there already"):
        quantize(few_words_folder, target)
    assert (target / "notes.txt").exists()
    quantize(few_words_folder, target, bits=8, overwrite=True)
    assert not (target / "notes.txt").exists()
    assert load_model_kit(target).config.quantization == {
        "bits": 8,
        "group_size": 64,
        "mode": "affine",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_where_nothing_may_be_written(few_words_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "models" / "source"
    shutil.copytree(few_words_folder, source)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "letters")
    before = contents(tmp_path)
    for target in (
        source,
        source / "inside",
        source.parent,
        tmp_path / "letters",
        tmp_path / "file",
        tmp_path / "file" / "below",
        tmp_path / "link",
        tmp_path / ("x" * 300),
        tmp_path / "a\0b",
    ):
        with pytest.raises(SaveError):
            convert(source, target, overwrite=True)
    (tmp_path / "also source").symlink_to(source)
    with pytest.raises(SaveError, match="lie in one another"):
        convert(tmp_path / "also source", source, overwrite=True)
    assert contents(tmp_path) == before


def test_what_appears_meanwhile_is_kept(few_words_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"

    def appears(stage: str, done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "precious.txt").write_text("mine")

    for overwrite in (False, True):
        with pytest.raises(SaveError):
            convert(few_words_folder, target, progress=appears, overwrite=overwrite)
        assert [path.name for path in target.iterdir()] == ["precious.txt"]
        shutil.rmtree(target)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_more_than_a_checkpoint(few_words_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "project"
    convert(few_words_folder, target)
    (target / "notes").mkdir()
    with pytest.raises(SaveError, match="no checkpoint"):
        convert(few_words_folder, target, overwrite=True)
    (target / "notes").rmdir()
    (target / "model.safetensors").unlink()
    with pytest.raises(SaveError, match="no checkpoint"):
        convert(few_words_folder, target, overwrite=True)


def test_a_source_of_links(few_words_folder: Path, tmp_path: Path) -> None:
    """As the hub's cache has them: what they point to must not be replaced."""
    real, links = tmp_path / "real", tmp_path / "snapshots" / "links"
    convert(few_words_folder, real)
    links.mkdir(parents=True)
    for file in real.iterdir():
        (links / file.name).symlink_to(file)
    before = contents(real)
    with pytest.raises(SaveError, match="lie in one another"):
        quantize(links, real, overwrite=True)
    assert contents(real) == before
    quantize(links, tmp_path / "target", bits=8)
    assert not any(path.is_symlink() for path in (tmp_path / "target").iterdir())


def test_the_working_folder(
    few_words_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SaveError, match="working folder"):
        convert(few_words_folder, Path())


def test_an_empty_folder_and_folders_that_are_not_there(
    few_words_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        convert(few_words_folder, target)
        assert (target / "config.json").is_file()


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone.safetensors"}}'
    )


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize("damage", [_cut, _missing_shard, _no_config])
def test_a_damaged_source(
    few_words_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(few_words_folder, source)
    convert(source, target)
    damage(source)
    before = contents(tmp_path)
    for make in (quantize, convert):
        with pytest.raises(CheckpointError):
            make(source, target, overwrite=True)
    assert contents(tmp_path) == before


def test_a_result_that_could_not_be_loaded(few_words_folder: Path, tmp_path: Path) -> None:
    """It is tried before it takes its place."""
    from model_kit.save import save_checkpoint
    from vision_add_ons.json_files import read_json
    from vision_add_ons.weights import read_weights

    target = tmp_path / "target"
    convert(few_words_folder, target)
    before = contents(tmp_path)
    tensors = read_weights(few_words_folder)
    tensors.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match="norm"):
        save_checkpoint(
            few_words_folder, target, read_json(few_words_folder / "config.json"), tensors
        )
    assert contents(tmp_path) == before


QUANTIZE = """
import os, sys
from model_kit.blas import preload_openblas
preload_openblas()
from model_kit import save
write = save.write_safetensors

def writing(path, tensors, metadata, written):
    def told(nbytes):
        written(nbytes)
        os.write(1, b"some of it is there\\n")
        sys.stdin.read()
    write(path, tensors, metadata, told)

save.write_safetensors = writing
from engine.cli import main
sys.exit(main(["quantize", *sys.argv[1:], "--bits", "8"]))
"""


def test_ctrl_c_in_the_terminal(few_words_folder: Path, tmp_path: Path) -> None:
    command = python(QUANTIZE, few_words_folder, tmp_path / "target")
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "some of it is there\n"
    assert list(tmp_path.glob(".*/model.safetensors"))
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=600)
    assert process.returncode == 130
    assert complaints == ""
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_processes(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{i:032x}.unfinished" for i in range(2))
    for leftover in (old, new):
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"half")
    past = time.time() - LEFTOVER_SECONDS - 10
    for path in (old / "model.safetensors", old):
        os.utime(path, (past, past))
    with replacing_folder(tmp_path / "target") as work:
        (work / "a").write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {"target", new.name}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
def test_every_dtype_is_written_as_mlx_writes_it(tmp_path: Path, dtype: mx.Dtype) -> None:
    tensors = {
        "matrix": mx.arange(12).reshape(3, 4).astype(dtype),
        "turned": mx.arange(12).reshape(3, 4).T.astype(dtype),
        "scalar": mx.array(1).astype(dtype),
        "none": mx.zeros((0, 4), dtype),
    }
    expected = dict(tensors)
    told: list[int] = []
    write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "mlx"}, told.append)
    assert tensors == {}
    assert told == [array.nbytes for array in expected.values()]
    read, metadata = mx.load(str(tmp_path / "x.safetensors"), return_metadata=True)  # type: ignore[misc]
    assert metadata == {"format": "mlx"}
    assert read.keys() == expected.keys()  # type: ignore[union-attr]
    for name, array in expected.items():
        assert read[name].dtype == dtype  # type: ignore[index]
        assert read[name].shape == array.shape  # type: ignore[index]
        assert mx.array_equal(read[name], array).item()  # type: ignore[index]


def test_a_file_that_shrinks_while_it_is_read(few_words_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(few_words_folder, source)

    def cut(stage: str, done: int, total: int) -> None:
        os.truncate(source / "model.safetensors", 2000)

    with pytest.raises(BrokenWeights, match="cannot be read"):
        convert(source, tmp_path / "target", progress=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
