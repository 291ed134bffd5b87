"""Loading tells what it is doing from the start on, and ends when it is told to."""

import threading
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from engine import CheckpointNotFound, EngineClosed, OptionError, load

STAGES = ["import libraries", "open checkpoint", "load decoder"]


def test_progress_from_the_start(tiny_folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    load(tiny_folder, progress=lambda *call: told.append(call)).close()
    assert [stage for stage, _ in groupby(told, key=lambda call: call[0])] == STAGES
    assert told[0][1] == 0
    for stage in STAGES:
        done = [call[1] for call in told if call[0] == stage]
        assert done == sorted(done)
    assert told[-1][1] == told[-1][2] > 0


@pytest.mark.parametrize("when", STAGES)
def test_cancel(tiny_folder: Path, when: str) -> None:
    cancel = threading.Event()
    told: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append(stage)
        if stage == when:
            cancel.set()

    with pytest.raises(EngineClosed, match="cancelled"):
        load(tiny_folder, progress=progress, cancel=cancel)
    assert told.count(when) == 1
    assert told[-1] == when


def test_cancelled_before_it_begins(tiny_folder: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(EngineClosed, match="cancelled"):
        load(tiny_folder, cancel=cancel)


def test_a_model_that_is_not_there_is_told_before_libraries_are_imported() -> None:
    told: list[str] = []
    with pytest.raises(CheckpointNotFound):
        load("no-such-model", progress=lambda stage, *_: told.append(stage))
    assert told == []


@pytest.mark.parametrize(
    ("argument", "value", "told"),
    [
        ("progress", 5, "progress must be a function, not int"),
        ("cancel", 5, "cancel must be a threading.Event, not int"),
        ("add_on", 5, "add_on must be a class, one made from VisionAddOn"),
        ("add_on", int, "add_on must be a class, one made from VisionAddOn"),
        ("decoder_only", "no", "decoder_only must be True or False, not str"),
        ("vocab_only", 1, "vocab_only must be True or False, not int"),
        ("cache_bytes", True, "cache_bytes must be a number of bytes, not bool"),
        ("cache_dir", 5, "cache_dir must be a path, not int"),
    ],
)
def test_wrong_arguments_are_named(
    letters_folder: Path, argument: str, value: Any, told: str
) -> None:
    with pytest.raises(OptionError, match=f"^{told}$"):
        load(letters_folder, **{argument: value})
