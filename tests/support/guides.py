"""Guides whose code the tests run: the blocks of a page, and running one as its reader would."""

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def blocks(guide: Path, language: str) -> list[Any]:
    """Each block as a test's parameters, its code and the line before it, named by its section."""
    text = guide.read_text(encoding="utf-8")
    found, section = [], "top"
    for match in re.finditer(rf"^## ([^\n]+)$|^```{language}\n(.*?)^```$", text, re.M | re.S):
        if match[1]:
            section = match[1]
        else:
            line = text.count("\n", 0, match.start(2))
            found.append(pytest.param(match[2], line, id=f"{section}, line {line + 1}"))
    return found


def run(guide: Path, code: str, line: int) -> dict[str, Any]:
    """Run a block and return the names that it made; an error tells the guide's own line."""
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile("\n" * line + code, str(guide), "exec"), names)
    return names
