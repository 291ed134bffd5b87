"""InternVL with choices other than the usual, many tiles, its decoder's config, and refusals.

What every family holds is checked in tests/parity.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.internvl_reference import SIDE, VIDEO, InternVLReference
from support.peaks import most_taken
from support.seeds import SWEEP
from support.tiny import edit_config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from engine import load
from model_kit.config import read_config
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.errors import MissingWeight, PromptError, UnsupportedCheckpoint
from vision_add_ons.internvl import InternVLAddOn
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import TOLERANCE, WORDS, Photo, relative_error, written
from vision_add_ons.vit_blocks import Cutting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(InternVLReference(1), tmp_path_factory.mktemp("internvl"))


def add_on_of(folder: Path) -> InternVLAddOn:
    return InternVLAddOn(folder, json.loads((folder / "config.json").read_text()))


def test_registry_knows_it() -> None:
    assert find_add_on("internvl") is InternVLAddOn


# --- rows and tiles -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"vision": {"norm_type": "rms_norm"}},
        {"vision": {"use_qk_norm": True}},
        {"vision": {"attention_bias": False}},
        {"vision": {"patch_size": 2}},
        {"vision": {"layer_norm_eps": 1e-3}},
        {"downsample_ratio": 0.25},
        {"downsample_ratio": 1.0},
        {"vision_feature_layer": -2},
        {"vision_feature_layer": -3},
    ],
    ids=str,
)
def test_rows_with(changes: dict[str, Any], tmp_path: Path, seed: int) -> None:
    reference = InternVLReference(seed, **changes)
    written(reference, tmp_path)
    photo = Photo(33, 47, seed)
    rows = np.array(add_on_of(tmp_path).encode_image(photo))
    error = relative_error(rows, reference.rows(photo.image))
    print(f"{changes}: {error:.1e}")
    assert error <= TOLERANCE


@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 1), (4, 40), (6, 5), (12, 12)])
def test_grids_are_those_of_the_reference(copy: Path, least: int, most: int, seed: int) -> None:
    file = copy / "preprocessor_config.json"
    counts = {"min_patches": least, "max_patches": most}
    file.write_text(json.dumps({**json.loads(file.read_text()), **counts}))
    tiles = add_on_of(copy).tiles
    sizes = [(c * s, r * s) for c in range(1, 8) for r in range(1, 8) for s in (3, SIDE, 90)]
    sizes += np.random.default_rng(seed).integers(1, 400, (300, 2)).tolist()
    for width, height in sizes:
        theirs = get_optimal_tiled_canvas((height, width), (SIDE, SIDE), least, most)
        assert tiles.grid((width, height)) == (theirs if most > 1 else (1, 1))


@pytest.mark.parametrize("together", [1, 2, 3, 5])
def test_tiles_that_go_through_the_tower_together(folder: Path, together: int, seed: int) -> None:
    """None of them sees another, and memory does not grow with their number."""
    add_on = add_on_of(folder)
    photo = Photo(SIDE * 4, SIDE * 3, seed)
    expected = np.array(add_on.encode_image(photo))
    assert len(expected) == 13 * add_on.rows
    add_on.cutting = Cutting(rows=together * 17, lazy=1)
    assert add_on.tower.at_once(add_on.cutting) == together
    assert relative_error(np.array(add_on.encode_image(photo)), expected) <= TOLERANCE
    add_on.cutting = Cutting(scores=together * 17 * 17 * 2 * 4)
    assert add_on.tower.at_once(add_on.cutting) == together
    assert relative_error(np.array(add_on.encode_image(photo)), expected) <= TOLERANCE


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"] if SWEEP else ["layer_norm"])
def test_memory_is_told(norm: str, tmp_path: Path, seed: int) -> None:
    """Of tiles large enough that what MLX needs in any case is little beside them."""
    vision = {"hidden_size": 128, "intermediate_size": 256, "image_size": 96, "norm_type": norm}
    reference = InternVLReference(seed, vision)
    written(reference, tmp_path)
    settings = {"size": {"height": 96, "width": 96}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_seq_length": 144}))
    add_on = add_on_of(tmp_path)
    for cutting in (Cutting(), Cutting(rows=1200, lazy=64), Cutting(rows=200, lazy=64)):
        add_on.cutting = cutting
        mx.eval(add_on.encode_image(Photo(50, 50, seed)))
        for size in ((50, 50), (96 * 2, 96), (96 * 3, 96 * 3)):
            told = add_on.tower_bytes(size)
            taken = most_taken(partial(add_on.encode_image, Photo(*size, seed)), told / 1.5)
            print(f"{cutting.rows} rows, {size}: {taken:,} of {told:,}, {told / taken:.2f}")
            assert taken <= told <= 1.5 * taken


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.internvl.add_on:InternVLAddOn"
    text = "\n".join(report.lines())
    assert "at most 12 tiles of 16 x 16 pixels" in text
    assert "4 rows a tile, at most 52 a picture" in text


def test_a_place_for_a_video_is_refused(folder: Path) -> None:
    with load(folder) as engine:
        with pytest.raises(PromptError, match="videos are not supported"):
            engine.generate([1, VIDEO, 9])
        assert engine.generate([1, 9, 10]).result().completion_tokens


@pytest.mark.parametrize("text", ["llm_config", "text_config"])
def test_the_older_layout_is_refused_by_name(text: str, tmp_path: Path) -> None:
    config = {"model_type": "internvl_chat", "vision_config": {"model_type": "intern_vit_6b"}}
    config[text] = {"model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedCheckpoint, match=r"'internvl_chat'.*use .*InternVL3-8B-hf"):
        read_config(tmp_path)


# --- the decoder's config ---------------------------------------------------------------------


def test_a_decoder_without_a_type_is_qwen2(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["text_config"]["model_type"]
    edit_config(copy, **config)
    assert read_config(copy).decoder_type == "qwen2"


@pytest.mark.parametrize("told", [None, True, False])
def test_a_tied_decoder(told: bool | None, tmp_path: Path, seed: int) -> None:
    """A config that does not tell is tied, if there is no head."""
    reference = InternVLReference(seed, tie_word_embeddings=True)
    folder = written(reference, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    config |= {} if told is None else {"tie_word_embeddings": told}
    (folder / "config.json").write_text(json.dumps(config))
    if told is False:
        with pytest.raises(MissingWeight, match=r"lm_head\.weight"):
            load_model_kit(folder)
        return
    tokens = list(WORDS)
    ours = np.array(load_model_kit(folder).text_model(mx.array([tokens]))[0])
    assert relative_error(ours, reference.logits(tokens, [], [])) <= TOLERANCE


def test_a_rope_that_changes_behind_the_context(folder: Path) -> None:
    """It is the plain one up to there, and there the engine ends."""
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["rope_parameters"]["rope_type"] == "dynamic"
    read = read_config(folder)
    assert read.decoder["rope_scaling"] is None
    assert read.decoder["rope_theta"] == 2e3
    assert read.max_context == 512
    reference = InternVLReference(1)
    tokens = (list(WORDS) * 8)[:512]
    ours = np.array(load_model_kit(folder).text_model(mx.array([tokens]))[0])
    assert relative_error(ours, reference.logits(tokens, [], [])) <= TOLERANCE
    more = tokens + tokens[:200]
    ours = np.array(load_model_kit(folder).text_model(mx.array([more]))[0])
    assert relative_error(ours, reference.logits(more, [], [])) > TOLERANCE
