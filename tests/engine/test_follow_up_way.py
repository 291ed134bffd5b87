"""How many functions a follow-up calls: what a reader walks through stays as short as it is."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # the scripts are no installed package

from scripts.follow_up_way import follow_up


@pytest.mark.parametrize(
    ("parallel", "functions", "files"), [(1, 130, 24), (8, 180, 32)], ids=["one", "eight"]
)
def test_a_follow_up_s_way_is_short(
    letters_folder: Path, parallel: int, functions: int, files: int
) -> None:
    way = follow_up(str(letters_folder), parallel=parallel)
    assert sum(map(len, way.values())) < functions
    assert len(way) < files
    assert "Answer.feed" in way["engine/decoding/answer.py"]
