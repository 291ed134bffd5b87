"""Processes that are killed while they save; `scripts/check_kills.py` does it more often."""

import sys
from pathlib import Path

import pytest
from support import tiny

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


def test_killed_while_saving(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "path", sys.path)
    from check_kills import run

    folder = tiny.save_of_letters(seed, tmp_path / "model")
    saves, warm = run(folder, 2, seed)
    assert saves >= 2
    assert warm > 0
