"""The documentation is true: snippets print what is shown, what it names exists, it builds."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.guides import DOCS, blocks, run

from engine.cli import main

if TYPE_CHECKING:
    from griffe import Class, Module, ModulesCollection

ROOT = DOCS.parent
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
ARCHITECTURE = DOCS / "architecture.md"
ROOMS = ("engine", "model_kit", "vision_add_ons")
PUBLIC = (
    "engine",
    "engine.server",
    "model_kit",
    "vision_add_ons",
    "vision_add_ons.base",
    "vision_add_ons.cache_views",
    "vision_add_ons.errors",
    "vision_add_ons.mrope",
    "vision_add_ons.registry",
    "vision_add_ons.testing",
)


@pytest.mark.parametrize(
    ("snippet", "shown"),
    list(zip(blocks(ARCHITECTURE, "python"), blocks(ARCHITECTURE, "text"), strict=True)),
)
def test_snippets_print_what_is_shown(snippet, shown) -> None:
    with redirect_stdout(io.StringIO()) as printed:
        run(ARCHITECTURE, *snippet.values)
    assert printed.getvalue() == shown.values[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    ours = r"(?:engine|model_kit|vision_add_ons|tests|scripts|docs|examples)"
    named = set(re.findall(rf"`({ours}/[\w./-]*)`", text))
    named |= {f"{m.replace('.', '/')}.py" for m in re.findall(r"python -m (scripts\.[\w.]+)", text)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def commands() -> list:
    """Every command line of ours that a page shows, as it stands there."""
    lines = {}
    for page in PAGES:
        shown = [line for block in blocks(page, "sh") for line in block.values[0].splitlines()]
        shown += re.findall(r"`(sightline [^`]+)`", page.read_text(encoding="utf-8"))
        for line in shown:
            if re.match(r"sightline [a-z]", line):
                lines[line.split("  #")[0].strip()] = page.name
    return [pytest.param(line, id=f"{page}: {line}") for line, page in lines.items()]


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_flags_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([line.split()[1], "--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[\w-]+", line)) <= known


@cache
def packages() -> "ModulesCollection":
    """Our packages as their source says, nothing imported."""
    from griffe import GriffeLoader

    loader = GriffeLoader(search_paths=[ROOT])
    for room in ROOMS:
        loader.load(room)
    loader.resolve_aliases()
    return loader.modules_collection


def undocumented(owner: "Module | Class") -> list[str]:
    """What is public in a module or class and has no docstring, nor inherits one.

    An attribute is documented, too, where its class's docstring names it.
    """
    found = []
    for name, member in owner.members.items():
        if name.startswith(("_", "test_")):  # a check's name says what it checks
            continue
        if owner.is_module:
            exported = owner.exports is None and not member.is_alias
            if not exported and name not in (owner.exports or ()):
                continue
            member = member.final_target if member.is_alias else member
            if member.is_module:
                continue
        else:
            told = owner.has_docstring and f"`{name}`" in owner.docstring.value
            of_bases = [base.members[name] for base in owner.mro() if name in base.members]
            if told or any(inherited.has_docstring for inherited in of_bases):
                continue
        if not member.has_docstring:
            found.append(member.path)
        if member.is_class:
            found += undocumented(member)
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_everything_public_has_a_docstring(module: str) -> None:
    loaded = packages().get_member(module)
    assert loaded.has_docstring
    assert undocumented(loaded) == []


def test_files_stay_short() -> None:
    files = (file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    long = {f: n for f in files if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400}
    assert long == {}


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    # Not with --quiet, which keeps warnings from being counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    loading = r"""<(?:script|img|iframe|link)\b[^>]*(?:src|href)=["']?(https?://[^"'\s>]+)"""
    assert {url for page in pages.values() for url in re.findall(loading, page)} == set()
