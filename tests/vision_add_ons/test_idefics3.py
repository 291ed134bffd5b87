"""Idefics3 and SmolVLM: sizes as published, the places of patches, and memory.

What every family holds is checked in tests/parity.
"""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from support.idefics3_reference import VISION, Idefics3Reference
from support.peaks import most_taken
from support.pictures import photographs
from support.seeds import SWEEP
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from engine import load
from vision_add_ons.errors import PromptError
from vision_add_ons.idefics3 import Idefics3AddOn
from vision_add_ons.idefics3.tiles import Tiling
from vision_add_ons.idefics3.tower import SIDES, Idefics3Tower
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import TOLERANCE, Photo, relative_error, written
from vision_add_ons.vit_blocks import Cutting


def test_registry_knows_it() -> None:
    assert find_add_on("idefics3") is find_add_on("smolvlm") is Idefics3AddOn


def sized(_: Any, size: tuple[int, int], **__: Any) -> np.ndarray:
    """A picture of this height and width, without pixels of its own."""
    return np.broadcast_to(np.uint8(0), (3, *size))


# Idefics3 8B, SmolVLM 2.2B and its smaller ones; a single tile, odd sizes, and one over the limit.
PUBLISHED = ((364, 1456), (384, 1536), (512, 2048), (512, 512), (500, 1999), (90, 81), (512, 6001))


@pytest.mark.parametrize(("side", "longest"), PUBLISHED)
def test_sizes(side: int, longest: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of transformers, for pictures of any shape."""
    monkeypatch.setattr("transformers.image_processing_backends.np_resize", sized)
    theirs = Idefics3ImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": side}
    )
    ours = Tiling(side, longest, splitting=True)
    chance = random.Random(seed)
    drawn = [tuple(round(9000 ** chance.random()) for _ in "wh") for _ in range(400)]
    most = 0
    for width, height in [(1, 9000), (9000, 1), (side, side), (longest, 1), *drawn]:
        image = theirs.resize(sized(None, (height, width)), theirs.size)
        assert ours.resized((width, height)) == image.shape[:0:-1], (width, height)
        image = theirs.resize_for_vision_encoder(image, side)
        _, *grid = theirs.split_images(image, theirs.max_image_size)
        expected = tuple(grid) if any(grid) else (1, 1)
        assert ours.grid((width, height)) == expected, (width, height)
        most = max(most, *expected)
    assert most <= ours.most


@pytest.mark.parametrize("side", SIDES)
def test_each_patch_has_a_position_of_its_own(side: int) -> None:
    config = Idefics3VisionConfig(hidden_size=1, image_size=side * 2 + 1, patch_size=2)
    theirs = Idefics3VisionEmbeddings(config)
    theirs.patch_embedding.weight.data.zero_()
    theirs.patch_embedding.bias.data.zero_()
    theirs.position_embedding.weight.data[:, 0] = torch.arange(side * side)
    pixels = torch.zeros(1, 3, side * 2 + 1, side * 2 + 1)
    with torch.no_grad():
        found = theirs(pixels, torch.ones(1, side, side, dtype=torch.bool))
    assert found[0, :, 0].tolist() == list(range(side * side))


SIZES = [(364, 14, 2), (384, 14, 3), (512, 16, 4)]


@pytest.mark.parametrize(("side", "patch", "scale"), SIZES if SWEEP else SIZES[1:2])
def test_tiles_as_published(side: int, patch: int, scale: int, tmp_path: Path, seed: int) -> None:
    """Of Idefics3 8B, SmolVLM 2.2B, whose patches leave an edge over, and the smaller ones."""
    reference = Idefics3Reference(seed, side=side, patch_size=patch, scale_factor=scale)
    folder, image = written(reference, tmp_path), photographs()[1]
    eyes = Idefics3AddOn(folder, json.loads((folder / "config.json").read_text()))
    rows = eyes.encode_image(Photo.of(image))
    assert relative_error(np.array(rows), reference.rows(image)) <= TOLERANCE
    assert eyes.picture_tokens(Photo.of(image)) == reference.block(image)
    assert eyes.tower_bytes(image.size) > rows.nbytes


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_memory(dtype: mx.Dtype, seed: int) -> None:
    """Of tiles that are encoded at once, the estimate is never below; how near, time decides: it
    is of what is there at once if MLX hands all of a layer out before any of it is done."""
    mx.random.seed(seed)
    config = Idefics3VisionConfig(**{**VISION, "image_size": 260, "patch_size": 10}).to_dict()
    tower = Idefics3Tower({**config, "hidden_size": 128, "intermediate_size": 512})
    tower.set_dtype(dtype)
    mx.eval(tower.parameters())
    costs = tower.costs()
    for tiles in (1, 3):
        pixels = mx.random.normal((tiles, 260, 260, 3))
        mx.eval(pixels)
        told = tower.most_bytes(tiles, 0, Cutting(), costs)
        assert told / 2 <= most_taken(partial(tower, pixels, Cutting()), told / 2) <= told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Idefics3Reference(1), tmp_path_factory.mktemp("idefics3"))


def test_a_video_is_refused(folder: Path) -> None:
    parts = [{"type": "video", "video": "film.mp4"}, {"type": "text", "text": "w9"}]
    with load(folder) as engine, pytest.raises(PromptError, match="video"):
        engine.generate([{"role": "user", "content": parts}])


def test_what_becomes_of_pictures_is_told(folder: Path) -> None:
    with load(folder) as engine:
        told = "\n".join(engine.report.lines())
    assert "longer edge brought to 102 pixels, in tiles of 34 x 34" in told
    assert "4 rows a tile, at most 3 x 3 tiles and one of the whole picture" in told
