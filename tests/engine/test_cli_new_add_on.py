"""`sightline new-add-on`: a package whose tests say what to fill in, and pass when it is."""

import ast
import inspect
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cli import main
from engine.cli.new_add_on import write_package
from vision_add_ons.errors import OptionError
from vision_add_ons.registry import GROUP

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "sightline-llava"
PLAIN = ("-p", "no:cacheprovider", "--assert", "plain")


@pytest.fixture
def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["new-add-on", "llava"]) == 0
    assert "cd sightline-llava" in capsys.readouterr().out
    return tmp_path / "sightline-llava"


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # As if it were installed: the folder's module can be imported.
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_is_written(package: Path) -> None:
    files = {str(f.relative_to(package)) for f in package.rglob("*") if f.is_file()}
    assert files == {
        "README.md",
        "pyproject.toml",
        "sightline_llava.py",
        "tests/test_sightline_llava.py",
    }
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["name"] == "sightline-llava"
    [(key, target)] = project["project"]["entry-points"][GROUP].items()
    assert (key, target) == ("llava", "sightline_llava:LlavaAddOn")
    assert project["tool"]["setuptools"]["py-modules"] == [target.split(":")[0]]


@pytest.mark.parametrize("name", ["llava", "qwen9-vl_moe"])
def test_ruff_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    folder = write_package(name, tmp_path)
    for file in folder.rglob("*.py"):
        ast.parse(file.read_text())
    for command in (["check", "--config", str(ROOT / "pyproject.toml")], ["format", "--check"]):
        told = run("ruff", *command, "--config", "line-length=100", ".", folder=folder)
        assert told.returncode == 0, told.stdout
    left = [f for f in folder.rglob("*") if f.is_file() and "new" in f.name]
    assert not left


def raising(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """The methods that a class of a skeleton defines, called without an object."""
    for name, method in vars(kind).items():
        if inspect.isfunction(method):
            nothing: list[Any] = [None] * len(inspect.signature(method).parameters)
            yield name, lambda method=method, nothing=nothing: method(*nothing)


def test_every_gap_says_what_belongs_there(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "skeleton"}
    exec((package / "sightline_llava.py").read_text(), names)
    code = (package / "tests" / "test_sightline_llava.py").read_text()
    exec(code.replace("from sightline_llava import LlavaAddOn\n", ""), names)
    gaps = 0
    for kind in ("LlavaReference", "LlavaAddOn"):
        for name, call in raising(names[kind]):
            with pytest.raises(NotImplementedError, match=rf"^fill in next: {kind}\.{name} "):
                call()
            gaps += 1
    assert gaps == 8
    with pytest.raises(AssertionError, match=r"^fill in next: LlavaReference\.refused "):
        names["test_something_is_refused"]()


def test_the_tests_say_what_is_next(package: Path) -> None:
    told = run("pytest", *PLAIN, folder=package)
    assert told.returncode == 1
    assert "NotImplementedError: fill in next: LlavaReference.__init__ builds" in told.stdout
    assert "1 error in" in told.stdout


def test_the_example_fills_it_in(package: Path) -> None:
    """Its classes and their methods are the skeleton's; that it passes is `test_the_commands`."""
    for name in ("sightline_llava.py", "tests/test_sightline_llava.py"):
        assert defined(package / name) <= defined(EXAMPLE / name)


def defined(file: Path) -> set[str]:
    """The classes that a file defines, and their methods."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{x.name}" for x in node.body if isinstance(x, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(
    "name", ["", "LLaVA", "9lives", "a b", "../up", "llava_", "ll\u00e4va", "a.b"]
)
def test_names_that_are_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-add-on", name]) == 2
    assert "is no name of a model family" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_is_served(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'gemma3' is served already, by .*Gemma3AddOn"):
        write_package("gemma3", tmp_path)


def test_nothing_is_overwritten(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "README.md").write_text("mine")
    assert main(["new-add-on", "llava"]) == 2
    assert "sightline-llava is there already" in capsys.readouterr().err
    assert (package / "README.md").read_text() == "mine"
