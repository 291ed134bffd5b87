"""Qwen2-VL's sizes against transformers' image processor: any size, and limits in every form."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from vision_add_ons.errors import ImageError
from vision_add_ons.qwen2_vl.preprocessing import Patches

VISION = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
side = st.one_of(st.integers(1, 300), st.integers(1, 20_000))


@given(st.tuples(side, side), st.integers(1, 100_000), st.integers(1, 3_000_000))
def test_sizes_are_those_of_the_reference(size: tuple[int, int], low: int, high: int) -> None:
    patches = Patches(14, 2, 2, low, high, None)  # type: ignore[arg-type]
    width, height = size
    try:
        expected = smart_resize(height, width, 28, low, high)
    except ValueError:
        with pytest.raises(ImageError, match=f"{width}x{height}"):
            patches.resized(size)
    else:
        assert patches.resized(size) == expected[::-1]


@pytest.mark.parametrize(
    ("saved", "low", "high"),
    [
        ({}, 3136, 1003520),
        ({"min_pixels": 784, "max_pixels": 7840}, 784, 7840),
        ({"size": {"shortest_edge": 784, "longest_edge": 7840}}, 784, 7840),
        ({"size": {"shortest_edge": 1, "longest_edge": 7840}, "min_pixels": 784}, 784, 7840),
    ],
)
def test_limits_in_every_form(saved: dict[str, Any], low: int, high: int, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    patches = Patches.read(tmp_path, VISION)
    assert (patches.min_pixels, patches.max_pixels) == (low, high)
    theirs = Qwen2VLImageProcessorPil(**saved).size
    assert (theirs["shortest_edge"], theirs["longest_edge"]) == (low, high)
