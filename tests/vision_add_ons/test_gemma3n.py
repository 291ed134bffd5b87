"""Gemma 3n where it differs from other families: its tower against timm's, ids of modalities.

What every family holds is checked in tests/parity.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
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
from support.peaks import most_taken
from support.planted import Planting
from support.seeds import seed_of
from support.timm_tower import EVERY, SEED, STORED, of_timm, ours, shapes_of

from engine import Engine, load
from model_kit.config import read_config
from model_kit.decoder_modules import decoder_module
from model_kit.kit import inspect_checkpoint
from vision_add_ons.base import Picture
from vision_add_ons.configs import resolve_config
from vision_add_ons.errors import BrokenConfig, CheckpointError, PromptError, UnsupportedCheckpoint
from vision_add_ons.gemma3n.add_on import Embedder, Gemma3nAddOn
from vision_add_ons.gemma3n.config import TowerConfig
from vision_add_ons.gemma3n.tower import MobileNetV5, most_bytes
from vision_add_ons.testing import (
    BOS,
    WORDS,
    answer_checks,
    relative_error,
    row_checks,
    seam_checks,
    written,
)

TEXT = {
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
    "altup_active_idx": 0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_lr_multiplier": 1.0,
    "altup_num_inputs": 4,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2048,
    "hidden_size_per_layer_input": 256,
    "initializer_range": 0.02,
    "intermediate_size": [8192] * 30,
    "laurel_rank": 64,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
    "max_position_embeddings": 32768,
    "model_type": "gemma3n_text",
    "num_attention_heads": 8,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 10,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262400,
    "vocab_size_per_layer_input": 262144,
}
"""E2B's, as published; E4B's differs in its numbers."""
VISION_TOWER = {
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
def test_sounds_are_refused(engine: Engine, images: list[Image.Image]) -> None:
    with pytest.raises(PromptError, match="sounds are not supported"):
        engine.generate([BOS, SOUND, *[IMAGE] * len(images), 9], images=images)


def test_load_report_states_the_limits(folder: Path) -> None:
    """Layers that look at others' keys and values take none of the KV cache."""
    report = inspect_checkpoint(folder)
    assert report.kv_bytes_per_token == 4 * 2 * 2 * 16 * 4
    assert report.add_on == "vision_add_ons.gemma3n.add_on:Gemma3nAddOn"
    assert any("64 x 64 pixels, 4 rows" in line for line in report.lines())


def test_the_published_config(tmp_path: Path) -> None:
    """All that it says of the decoder is read, without a word about anything assumed but ties."""
    config = {"model_type": "gemma3n", "text_config": TEXT, "vision_config": VISION_TOWER}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_config(tmp_path)
    assert read.decoder_type == "gemma3n_text"
    assert [line.split(":")[0] for line in read.assumed] == ["tie_word_embeddings"]
    args = decoder_module(read.decoder_type).ModelArgs.from_dict(read.decoder)
    assert (args.rope_theta, args.rope_local_base_freq) == (1e6, 1e4)
    named = {name: value for name, value in TEXT.items() if hasattr(args, name)}
    assert {name: getattr(args, name) for name in named} == {**named, "altup_coef_clip": None}


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
    config = resolve_config({"model_type": "gemma3n", "vision_config": VISION_TOWER})
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
    least = told / 1.4 - pixels.nbytes
    taken = most_taken(lambda: embedder(tower(pixels).flatten(0, 1)), least)
    assert least <= taken <= told - pixels.nbytes


# --- faults that the kit must name ------------------------------------------------------------


class NormalisedAnyway(Gemma3nAddOn):
    """Whatever `do_normalize` says."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pixels = replace(self.pixels, mean=(0.5,) * 3, std=(0.5,) * 3)


class PlacesTurned(Gemma3nAddOn):
    """Column by column, where the reference goes line by line."""

    def encode_image(self, picture: Picture) -> mx.array:
        rows = mx.unflatten(super().encode_image(picture), 0, (self.tower.msfa.side, -1))
        return rows.swapaxes(0, 1).flatten(0, 1)


class WordsUnscaled(Gemma3nAddOn):
    def embed_tokens(self, text_model: Any, tokens: mx.array) -> mx.array:
        return text_model.model.embed_tokens(tokens)


class LayersTakePicturesForWords(Gemma3nAddOn):
    """What layers are given beside the rows is that of a word."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.placeholder_id = WORDS[0]


@pytest.mark.parametrize(
    ("faulty", "check", "saying"),
    [
        (NormalisedAnyway, row_checks.check_rows, "compare the pixels first"),
        (PlacesTurned, row_checks.check_rows, "are off by"),
        (WordsUnscaled, seam_checks.check_text_embeddings, "embed_tokens must give"),
        (WordsUnscaled, answer_checks.check_one_picture, "logits are off"),
        (LayersTakePicturesForWords, answer_checks.check_one_picture, "logits are off"),
    ],
)
def test_faults_are_caught(planting: Planting, faulty: Any, check: Any, saying: str) -> None:
    planting.caught(faulty, check, saying)
