"""Gemma 3n where it differs from other families: its tower against timm's, ids of modalities.

What every family holds is checked in tests/parity.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image
from support.gemma3n_reference import (
    IMAGE,
    SIDE,
    SOUND,
    TOWER,
    VISION,
    Gemma3nReference,
)
from support.mobilenetv5 import TorchMobileNetV5, computed, digest
from support.seeds import seed_of

from engine import Engine, load
from model_kit.kit import inspect_checkpoint
from scripts.timm_tower import EVERY, SEED, STORED, of_timm, ours, shapes_of
from vision_add_ons.configs import resolve_config
from vision_add_ons.errors import BrokenConfig, CheckpointError, PromptError, UnsupportedCheckpoint
from vision_add_ons.gemma3n.add_on import Embedder
from vision_add_ons.gemma3n.config import TowerConfig
from vision_add_ons.gemma3n.tower import MobileNetV5, most_bytes
from vision_add_ons.testing import BOS, relative_error, written

PUBLISHED = {
    "architecture": "mobilenetv5_300m_enc",
    "do_pooling": True,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "label_names": ["LABEL_0", "LABEL_1"],
    "model_args": None,
    "model_type": "gemma3n_vision",
    "num_classes": 2,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "bfloat16",
    "vocab_offset": 262144,
    "vocab_size": 128,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Gemma3nReference(1), tmp_path_factory.mktemp("gemma3n"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with load(folder) as loaded:
        yield loaded


@pytest.mark.parametrize("images", [[], [Image.new("RGB", (9, 9))]])
def test_audio_is_refused(engine: Engine, images: list[Image.Image]) -> None:
    with pytest.raises(PromptError, match="audio is not supported"):
        engine.generate([BOS, SOUND, *[IMAGE] * len(images), 9], images=images)


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.gemma3n.add_on:Gemma3nAddOn"
    assert any("64 x 64 pixels, 4 rows" in line for line in report.lines())


# --- the tower --------------------------------------------------------------------------------


def test_values_are_timm_s() -> None:
    """Of our tower, and of the reference's, some of timm's values that a script has stored."""
    stored = json.loads(STORED.read_text())
    expected = np.array(stored["values"])
    for made in (computed(TorchMobileNetV5(**TOWER), SEED, SIDE), ours(TOWER, SEED, SIDE)):
        assert relative_error(made[:, ::EVERY], expected) <= 2e-5


def test_values_are_those_of_timm_itself(seed: int) -> None:
    """Where timm is installed."""
    pytest.importorskip("timm")
    expected = computed(of_timm(TOWER), seed, SIDE)
    for made in (computed(TorchMobileNetV5(**TOWER), seed, SIDE), ours(TOWER, seed, SIDE)):
        assert relative_error(made, expected) <= 2e-5


def test_the_published_tower_has_timm_s_names_and_shapes() -> None:
    config = resolve_config({"model_type": "gemma3n", "vision_config": PUBLISHED})
    tower = MobileNetV5(TowerConfig.read(config["vision_config"]))
    assert digest(shapes_of(tower)) == json.loads(STORED.read_text())["published"]


def test_sides_of_any_number_of_places() -> None:
    """Three places a side: what the last stage ends with is not half as fine as that before."""
    args = {**TOWER, "msfa_output_resolution": 3}
    seed = seed_of("sides")
    expected = computed(TorchMobileNetV5(**args), seed, 48)
    assert relative_error(ours(args, seed, 48), expected) <= 2e-5


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"block_type": "cn"}, UnsupportedCheckpoint, "block_type"),
        ({"stride": 2}, UnsupportedCheckpoint, "stride"),
        ({"out_chs": 0}, BrokenConfig, "out_chs"),
        ({"exp_ratio": "4"}, BrokenConfig, "exp_ratio"),
        ({"exp_ratio": -1.0}, BrokenConfig, "exp_ratio"),
        ({"act_layer": "relu"}, UnsupportedCheckpoint, "act_layer"),
        ({"noskip": True}, UnsupportedCheckpoint, "noskip"),
        ({"se_ratio": 0.25}, UnsupportedCheckpoint, "se_ratio"),
        ({"dw_kernel_size_end": 3}, UnsupportedCheckpoint, "dw_kernel_size_end"),
        ({"group_size": 8}, UnsupportedCheckpoint, "group_size"),
    ],
    ids=str,
)
def test_other_blocks_are_refused(
    change: dict[str, Any], error: type[CheckpointError], told: str
) -> None:
    args = copy.deepcopy(TOWER)
    args["block_args"][1][1] |= change
    with pytest.raises(error, match=rf"block_args\[1\]\[1\].*{told}"):
        TowerConfig.read({**VISION, "model_args": args})


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        TOWER["block_args"][:3],
        [*TOWER["block_args"][:3], []],
        [*TOWER["block_args"][:3], ["mqa_r1_k3"]],
        [*TOWER["block_args"][:3], TOWER["block_args"][3][1:]],
        [*TOWER["block_args"][:3], [{**TOWER["block_args"][3][1], "stride": 2}]],
        [*TOWER["block_args"][:3], [{**TOWER["block_args"][3][2], "stride": 2}]],
        "blocks",
    ],
    ids=range(8),
)
def test_other_stages_are_refused(blocks: Any) -> None:
    with pytest.raises(CheckpointError, match="block_args"):
        TowerConfig.read({**VISION, "model_args": {**TOWER, "block_args": blocks}})


def test_memory_of_a_larger_picture() -> None:
    """Told within a third of what is measured, where pixels and not MLX itself decide."""
    tower = MobileNetV5(TowerConfig.read(VISION))
    embedder = Embedder({**VISION, "rms_norm_eps": 1e-6}, 64)
    told = most_bytes(tower, embedder, 256)
    pixels = mx.zeros((256, 256, 3))
    mx.eval(tower.parameters(), embedder.parameters(), pixels)
    mx.reset_peak_memory()
    active = mx.get_active_memory()
    mx.eval(embedder(tower(pixels).flatten(0, 1)))
    taken = mx.get_peak_memory() - active + pixels.nbytes
    assert taken <= told <= 1.4 * taken
