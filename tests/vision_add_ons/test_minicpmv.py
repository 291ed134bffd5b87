"""MiniCPM-V: sizes as published, the places of patches, the canvas, numbers, and memory.

What every family holds is checked in tests/parity.
"""

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from support.minicpmv_reference import (
    END,
    ID_END,
    ID_START,
    IMAGE,
    NEWLINE,
    SLICE_END,
    SLICE_START,
    START,
    VISION,
    MiniCPMV46Reference,
    MiniCPMV47Reference,
)
from support.peaks import most_taken
from support.pictures import photographs
from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)
from transformers.vision_utils import get_vision_nearest_position_ids

from engine import load
from vision_add_ons.errors import ImageCountError, PromptError, UnsupportedCheckpoint
from vision_add_ons.minicpmv import MiniCPMV46AddOn
from vision_add_ons.minicpmv.canvas import Canvas, CanvasPositions, stretched
from vision_add_ons.minicpmv.prompt import MOST
from vision_add_ons.minicpmv.slices import Slicing
from vision_add_ons.minicpmv.tower import (
    PUBLISHED,
    SIDES,
    Merger,
    MiniCPMVTower,
    TowerCosts,
    nearest,
)
from vision_add_ons.pixels import HALF_MEAN, HALF_STD, Pixels
from vision_add_ons.testing import TOLERANCE, Photo, relative_error, written
from vision_add_ons.testing.text_tokenizer import write_text_tokenizer
from vision_add_ons.vit_blocks import Cutting

MARKERS = (START, END, SLICE_START, SLICE_END, NEWLINE)


# --- preprocessing --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("most", [9, 36, 1])
def test_sizes(most: int, mode: str, seed: int) -> None:
    """Those of transformers, as published, for pictures of any shape."""
    theirs = MiniCPMV4_6ImageProcessorPil()
    pixels = Pixels.read({}, 3, HALF_MEAN, HALF_STD)
    ours = Slicing(14 * (2 if mode == "4x" else 4), 448, most, True, pixels)
    chance = random.Random(seed)
    drawn = [tuple(round(9000 ** chance.random()) for _ in "wh") for _ in range(300)]
    for width, height in [(1, 9000), (9000, 1), (448, 448), (449, 448), (896, 448), *drawn]:
        size = height, width
        grid = theirs.get_sliced_grid(size, most, 448)
        whole = theirs.find_best_resize(size, 448, 14, mode, allow_upscale=grid is None)
        layout = ours.layout((width, height))
        assert layout.whole[::-1] == whole, (width, height)
        assert (layout.lines, layout.columns) == tuple(grid or (0, 0)), (width, height)
        if grid:
            sides = theirs.get_refine_size(size, grid, 448, 14, mode, allow_upscale=True)
            made = layout.slice[1] * layout.lines, layout.slice[0] * layout.columns
            assert made == sides, (width, height)


@pytest.mark.parametrize("side", SIDES)
def test_where_patches_lie(side: int) -> None:
    """As in transformers, wherever rounding decides nothing."""
    for count in range(2, 200, 2):
        theirs = get_vision_nearest_position_ids(torch.tensor([[1, count]]), side).numpy()
        clear = (np.arange(count) * side % count != 0) | (np.arange(count) == 0)
        sure = clear if side == PUBLISHED else slice(None)
        assert np.array_equal(nearest(side, count)[sure], theirs[sure]), count


def test_slices_as_published(tmp_path: Path, seed: int) -> None:
    """Of a photograph, in patches of 14 pixels, with the learned positions of the published one."""
    sizes = {"patch_size": 14, "image_size": 980, "num_hidden_layers": 2}
    processing = {"patch_size": 14, "scale_resolution": 448, "max_slice_nums": 2}
    reference = MiniCPMV46Reference(seed, vision=sizes, processing=processing)
    folder, image = written(reference, tmp_path, "as published"), photographs()[2]
    eyes = MiniCPMV46AddOn(folder, json.loads((folder / "config.json").read_text()))
    rows = eyes.encode_image(Photo.of(image))
    assert relative_error(np.array(rows), reference.rows(image)) <= TOLERANCE
    assert eyes.picture_tokens(Photo.of(image)) == reference.block(image)
    assert eyes.tower_bytes(image.size) > rows.nbytes


# --- the canvas -----------------------------------------------------------------------------------


Drawn = tuple[list[int], list[tuple[int, Canvas]], list[list[int]]]


def drawn_prompt(chance: random.Random) -> Drawn:
    """Tokens, pictures and where they begin, and the lines and columns of each view's patches."""
    words = [9, 10, 11, ID_START, ID_END, START, END, SLICE_START, SLICE_END, NEWLINE]
    tokens: list[int] = []
    pictures, patches = [], []
    for _ in range(chance.randint(0, 4)):
        tokens += chance.choices(words, k=chance.choice((0, 0, 1, 2, 6)))
        whole, each = ((chance.randint(1, 9), chance.randint(1, 9)) for _ in "12")
        grid = (chance.randint(1, 4), chance.randint(1, 4)) if chance.random() < 0.7 else (0, 0)
        start = len(tokens)
        tokens += [START, *[IMAGE] * (whole[0] * whole[1]), END]
        for line in range(grid[0]):
            one = [SLICE_START, *[IMAGE] * (each[0] * each[1]), SLICE_END]
            tokens += [NEWLINE] * (line > 0) + one * grid[1]
        pictures.append((start, Canvas(whole, grid, each)))
        views = [whole, *[each] * (grid[0] * grid[1])]
        patches += [[4 * lines, 4 * columns] for lines, columns in views]
    return tokens + chance.choices(words, k=chance.randint(1, 5)), pictures, patches


def test_positions(seed: int) -> None:
    """Those of transformers, whatever stands around and between pictures."""
    theirs = MiniCPMV47Reference(seed).model.model
    chance = random.Random(seed)
    for _ in range(60):
        tokens, pictures, patches = drawn_prompt(chance)
        ids = torch.tensor([tokens])
        kinds, sizes = (ids == IMAGE).int(), torch.tensor(patches)
        expected, delta = theirs.get_rope_index(ids, kinds, sizes)
        ours = CanvasPositions(tokens, pictures, MARKERS)
        assert np.array_equal(ours.ids, expected[:, 0].numpy()), tokens
        assert ours.delta == delta.item(), tokens


def test_views_are_stretched_as_in_torch() -> None:
    for over in range(1, 70):
        for count in range(1, 16):
            expected = torch.linspace(0, over - 1, count).round().numpy()
            assert np.array_equal(stretched(count, over), expected), (count, over)


# --- prompts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(MiniCPMV47Reference(1), tmp_path_factory.mktemp("minicpmv"))


def look(folder: Path) -> MiniCPMV46AddOn:
    config = json.loads((folder / "config.json").read_text())
    return MiniCPMV46AddOn(folder, {**config, "model_type": "minicpmv4_6", "vision_config": VISION})


def test_numbers(folder: Path) -> None:
    tokenizer = write_text_tokenizer(folder, MiniCPMV46Reference.special_tokens)
    eyes = look(folder)
    photos = [Photo(20, 30, seed) for seed in range(12)]
    prompt = eyes.expand_prompt([9, *[IMAGE] * 12, 9], photos)
    text = tokenizer.decode(prompt.tokens)
    assert [text.count(f"<image_id>{i}</image_id><image>") for i in range(13)] == [1] * 12 + [0]
    with pytest.raises(ImageCountError, match=f"more than {MOST} pictures"):
        eyes.expand_prompt([IMAGE] * (MOST + 1), photos[:1] * (MOST + 1))


def test_a_tokenizer_without_line_breaks(folder: Path, tmp_path: Path) -> None:
    other = written(MiniCPMV47Reference(1), tmp_path)
    file = other / "tokenizer.json"
    words = json.loads(file.read_text())
    words["normalizer"] = {"type": "Replace", "pattern": {"String": "\n"}, "content": ""}
    file.write_text(json.dumps(words))
    with pytest.raises(UnsupportedCheckpoint, match="newline_id"):
        load(other)


def test_a_video_is_refused(folder: Path) -> None:
    parts = [{"type": "video", "video": "film.mp4"}, {"type": "text", "text": "w9"}]
    with load(folder) as engine:
        with pytest.raises(PromptError, match="video"):
            engine.generate([{"role": "user", "content": parts}])
        with pytest.raises(PromptError, match="videos are not supported"):
            engine.generate("<|video_pad|> w9")


def test_what_becomes_of_pictures_is_told(folder: Path) -> None:
    with load(folder) as engine:
        told = "\n".join(engine.report.lines())
    assert "a row for each 16 x 16 pixels, brought to about 32 x 32 pixels: about 4 rows" in told
    assert "larger ones are cut into up to 5 slices" in told


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("merging", [True, False])
def test_memory(merging: bool, dtype: mx.Dtype, seed: int) -> None:
    """The estimate is never below what a view takes, and not far above."""
    mx.random.seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 512, "insert_layer_id": 1}
    config = MiniCPMV4_6VisionConfig(**{**VISION, **sizes}).to_dict()
    tower, merger = MiniCPMVTower(config, merging), Merger(128, 64)
    for part in (tower, merger):
        part.set_dtype(dtype)
        mx.eval(part.parameters())
    costs = TowerCosts(tower, merger)
    for side in (24, 32):
        pixels = mx.random.normal((side * 4, side * 4, 3))
        mx.eval(pixels)
        told = costs.most_bytes(side**2, Cutting())

        def compute(pixels: mx.array = pixels) -> mx.array:
            return merger(tower(pixels, Cutting()))

        assert told / 2 <= most_taken(compute, told / 2) <= told
