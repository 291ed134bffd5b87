"""A checkpoint's JSON files: one object, nothing said twice, and nobody waits for a pipe."""

import os
from pathlib import Path

import pytest

from vision_add_ons.errors import BrokenConfig
from vision_add_ons.json_files import read_json, read_json_if_there


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    for read in (read_json, read_json_if_there):
        with pytest.raises(BrokenConfig, match="pipe"):
            read(pipe)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1]", "must hold a JSON object, not a list"),
        ('{"a": 1', "is not readable JSON"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[" * 100_000, "is not readable JSON"),
    ],
)
def test_what_is_no_object_is_named(content: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(BrokenConfig, match=told):
        read_json(file)


def test_given_twice_alike_is_once(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    assert read_json_if_there(file) == {}
    file.write_text('{"a": 1, "a": 1}')
    assert read_json(file) == {"a": 1}
