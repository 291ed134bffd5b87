"""Mistral 3 where it differs from Pixtral: merged patches, and two decoders.

What every family holds is checked in tests/parity.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.mistral3_reference import Ministral3Reference, Mistral3Reference
from support.pixtral_reference import write_flat
from support.tiny import edit_config

from model_kit.config import read_config
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.mistral3 import Mistral3AddOn
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import TOLERANCE, WORDS, Photo, relative_error, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Mistral3Reference(1), tmp_path_factory.mktemp("mistral3"))


def add_on_of(folder: Path) -> Mistral3AddOn:
    return Mistral3AddOn(folder, json.loads((folder / "config.json").read_text()))


def test_registry_knows_it() -> None:
    assert find_add_on("mistral3") is Mistral3AddOn


@pytest.mark.parametrize(
    ("merged", "changes"),
    [
        (1, {}),
        (3, {}),
        (2, {"vision": {"hidden_act": "silu"}}),
        (2, {"multimodal_projector_bias": True}),
        (2, {"vision_feature_layer": 1}),
        (2, {"vision_feature_layer": [-2]}),
    ],
    ids=str,
)
def test_rows_with(merged: int, changes: dict[str, Any], tmp_path: Path, seed: int) -> None:
    reference = Mistral3Reference(seed, spatial_merge_size=merged, **changes)
    written(reference, tmp_path)
    photo = Photo(33, 47, seed)
    rows = np.array(add_on_of(tmp_path).encode_image(photo))
    error = relative_error(rows, reference.rows(photo.image))
    print(f"{merged}, {changes}: {error:.1e}")
    assert error <= TOLERANCE


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.mistral3:Mistral3AddOn"
    assert "a row for each 8 x 8 pixels, at most 36" in "\n".join(report.lines())


# --- the decoders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "text", "expected"),
    [
        (True, False, True),
        (False, True, False),
        (None, True, True),  # as transformers 4 wrote it
        (None, False, False),
        (None, None, False),  # as Mistral Small was published
    ],
)
def test_ties(copy: Path, whole: bool | None, text: bool | None, expected: bool) -> None:
    config = json.loads((copy / "config.json").read_text())
    for part, ties in ((config, whole), (config["text_config"], text)):
        part.pop("tie_word_embeddings")
        if ties is not None:
            part["tie_word_embeddings"] = ties
    (copy / "config.json").write_text(json.dumps(config))
    assert read_config(copy).decoder["tie_word_embeddings"] is expected


def our_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    return np.array(load_model_kit(folder).text_model(mx.array([tokens]))[0])


@pytest.mark.parametrize("published", [False, True])
def test_a_tied_decoder(published: bool, tmp_path: Path, seed: int) -> None:
    """As Ministral 3B's, told by either config."""
    reference = Ministral3Reference(seed, tie_word_embeddings=True)
    folder = written(reference, tmp_path)
    if published:
        config = json.loads((folder / "config.json").read_text())
        write_flat(config)
        config["text_config"]["tie_word_embeddings"] = True
        (folder / "config.json").write_text(json.dumps(config))
    tokens = list(WORDS)
    error = relative_error(our_logits(folder, tokens), reference.logits(tokens, [], []))
    assert error <= TOLERANCE


def test_queries_grow_with_the_position(tmp_path: Path, seed: int) -> None:
    """Ministral 3's, a step for each `original_max_position_embeddings`."""
    reference = Ministral3Reference(seed)
    folder = written(reference, tmp_path)
    tokens = np.random.default_rng(seed).choice(WORDS, 400).tolist()
    expected = reference.logits(tokens, [], [])
    assert relative_error(our_logits(folder, tokens), expected) <= TOLERANCE

    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"]["llama_4_scaling_beta"] = 0.0
    edit_config(folder, **config)
    assert relative_error(our_logits(folder, tokens), expected) > 1e-2


def test_ministral3_without_rope_parameters(tmp_path: Path) -> None:
    """transformers' class has YaRN by default."""
    folder = written(Ministral3Reference(1), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"]
    edit_config(folder, **config)
    rope = read_config(folder).decoder["rope_parameters"]
    assert rope["rope_type"] == "yarn"
    assert rope["llama_4_scaling_beta"] == 0.1
    assert rope["original_max_position_embeddings"] == 16384
    assert load_model_kit(folder).text_model is not None


def test_ministral3_without_its_scale_is_refused(tmp_path: Path) -> None:
    folder = written(Ministral3Reference(1), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_parameters"]["llama_4_scaling_beta"]
    edit_config(folder, **config)
    with pytest.raises(BrokenConfig, match="llama_4_scaling_beta"):
        load_model_kit(folder)
