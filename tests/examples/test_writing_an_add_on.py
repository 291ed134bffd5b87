"""The tutorial is true: its pieces are the example, and its commands do what it says."""

import os
import re
import site
import tomllib
import venv
from pathlib import Path

import pytest
from support.guides import DOCS, run
from support.processes import USERS_MACHINE, whole_environment
from support.seeds import SWEEP

from scripts.follow_tutorial import PAGE, ROOT, files, follow, steps

EXAMPLE = ROOT / "examples" / "sightline-llava"
STEPS = steps()
SNIPPETS = [
    pytest.param(s.code, s.line - 1, id=f"line {s.line}") for s in STEPS if s.kind == "python"
]
KIT = "pytest -q\n"
"""Run by the page, here in a sweep alone: what it runs are the example's own tests."""
PROGRAMS = {"pip": "pip", "pytest": "pytest", "sightline": "engine"}


def quick_environment(folder: Path) -> Path:
    """An environment of its own that sees what this one has installed; its programs' folder."""
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/*/site-packages")
    lines = [f"import site; site.addsitedir({str(path)!r})" for path in site.getsitepackages()]
    (packages / "others.pth").write_text("\n".join(lines))
    for program, module in PROGRAMS.items():
        script = folder / "bin" / program
        python = f'"{folder}/bin/python"'
        if program == "sightline":  # needs no torch, which transformers takes seconds to import
            python = f'env PYTHONPATH="{USERS_MACHINE}:$PYTHONPATH" {python}'
        script.write_text(f'#!/bin/sh\nexec {python} -m {module} "$@"\n')
        script.chmod(0o755)
    return folder / "bin"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The package's folder and all that was printed, after every step but the making of an
    environment and the snippets."""
    place = tmp_path_factory.mktemp("tutorial")
    inherited = whole_environment()  # the reference needs it
    environment = {
        **{name: value for name, value in inherited.items() if not name.startswith("PYTEST")},
        "PATH": f"{quick_environment(place / 'environment')}:{os.environ['PATH']}",
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells yes
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        # The example's own tests are the whole conformance run.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # a new environment has pytest alone
        "PYTEST_ADDOPTS": "-k test_rows -p no:cacheprovider",
    }
    wanted = [
        s
        for s in STEPS
        if s.kind != "python" and not s.makes_environment and (SWEEP or s.code != KIT)
    ]
    return place / "sightline-llava", "".join(follow(wanted, place, environment))


def test_the_pieces_are_the_example() -> None:
    written = files(STEPS)
    for name in ("sightline_llava.py", "tests/test_sightline_llava.py"):
        assert written[name] == (EXAMPLE / name).read_text()
    ours, theirs = (
        tomllib.loads(text)["project"]
        for text in (written["pyproject.toml"], (EXAMPLE / "pyproject.toml").read_text())
    )
    assert ours["name"] == theirs["name"]
    for group, entries in ours["entry-points"].items():
        assert entries.items() <= theirs["entry-points"][group].items()


@pytest.mark.whole
def test_the_commands(followed: tuple[Path, str]) -> None:
    _, printed = followed
    if SWEEP:
        assert re.search(r"^\d+ passed, \d+ deselected", printed, re.M)
    assert "teal.png, 64x48: goes with the next message" in printed
    prompt, cached = map(int, re.findall(r"(\d+) prompt tokens \((\d+) cached\)", printed)[-1])
    assert prompt > cached > 16  # the picture's rows among them


@pytest.mark.parametrize(("code", "line"), SNIPPETS)
def test_snippet(
    code: str, line: int, followed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = followed
    monkeypatch.chdir(folder)
    [packages] = folder.parent.glob("environment/lib/*/site-packages")
    monkeypatch.syspath_prepend(packages)  # where it is known that the package is installed
    run(PAGE, code, line)


def test_each_section_has_a_snippet() -> None:
    sections = re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    last = dict(sections[-6:])
    several = ["Several images", "Templates without images"]
    places = ["Masks", "Positions", "Features of deeper layers"]
    assert list(last) == [*places, *several, "Quantized towers"]
    assert all(text.count("```python\n") == 1 for text in last.values())


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(examples/[^`]+)`", PAGE.read_text()))))
def test_files_exist(name: str) -> None:
    assert (DOCS.parent / name).exists()
