"""`sightline quantize`, `convert`, `fuse`, and `--adapter`, as a user runs them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.adapters import write_adapter
from support.processes import COMMAND
from support.seeing_checkpoints import FORMS

from engine.cli import main

Run = Callable[..., tuple[str, str, int]]


def process(*arguments: object) -> tuple[str, str, int]:
    """What it told, its complaints, and the exit code of a command in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True)
    return ran.stdout, ran.stderr, ran.returncode


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The same in this process."""

    def run(*arguments: object) -> tuple[str, str, int]:
        code = main([*map(str, arguments)])
        return *capfd.readouterr(), code

    return run


def test_quantize(run: Run, few_words_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    told, complaints, code = process(
        "quantize", few_words_folder, target, "--bits", 8, "--group-size", 32
    )
    assert (complaints, code) == ("", 0)
    assert told.startswith(f"{target}: 22 layers quantized, ")
    told, complaints, code = run("inspect", target)
    assert "8 bits, groups of 32" in told
    told, complaints, code = run("quantize", few_words_folder, target)
    assert (told, code) == ("", 2)
    assert complaints.startswith(f"sightline: {target} is there already; ")
    assert run("quantize", few_words_folder, target, "--overwrite", "--embeddings")[2] == 0
    told, complaints, code = run("quantize", few_words_folder, tmp_path / "x", "--text", "What?")
    assert (told, code) == ("", 2)
    assert "--report" in complaints


def test_quantize_report(run: Run, few_words_folder: Path, tmp_path: Path) -> None:
    options = ("--bits", 8, "--report", "--text", "The river bends and turns again.")
    told, complaints, code = run("quantize", few_words_folder, tmp_path / "target", *options)
    assert (complaints, code) == ("", 0)
    assert "KL" in told


def test_convert(tmp_path: Path) -> None:
    source = FORMS["moxin native"](tmp_path / "source", 1)
    told, complaints, code = process("convert", source, tmp_path / "target", "--dtype", "float16")
    assert (complaints, code) == ("", 0)
    assert told == f"{tmp_path / 'target'}: 1 MB\n"
    index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
    assert "projector.fc1.weight" in index["weight_map"]


def test_fuse_and_adapter(run: Run, few_words_folder: Path, tmp_path: Path, seed: int) -> None:
    adapter = write_adapter(few_words_folder, tmp_path / "adapter", seed)
    told, complaints, code = process("fuse", few_words_folder, adapter, tmp_path / "fused")
    assert (complaints, code) == ("", 0)
    ask = ("generate", "--prompt", "Once", "--raw", "--max-tokens", 8, "--model")
    plain, fused = (run(*ask, folder)[0] for folder in (few_words_folder, tmp_path / "fused"))
    adapted, _, code = run(*ask, few_words_folder, "--adapter", adapter)
    assert code == 0
    assert adapted == fused != plain
    told, complaints, code = run(*ask, few_words_folder, "--adapter", tmp_path)
    assert (told, code) == ("", 2)
    assert "adapter_config.json" in complaints
