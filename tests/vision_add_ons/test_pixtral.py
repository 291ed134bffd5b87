"""Pixtral with choices other than the usual, pictures beyond its sizes, and its decoder's config.

What every family holds is checked in tests/parity.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.pixtral_reference import BREAK, END, IMG, PixtralReference
from support.tiny import edit_config
from transformers import LlavaConfig
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from engine import load
from engine.images import load_picture
from model_kit.config import read_config
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.errors import BrokenTokenizer, ImageError, UnsupportedCheckpoint
from vision_add_ons.pixtral import PixtralAddOn
from vision_add_ons.registry import find_add_on
from vision_add_ons.testing import TOLERANCE, Photo, relative_error, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(PixtralReference(1), tmp_path_factory.mktemp("pixtral"))


def edit_json(file: Path, **changes: Any) -> None:
    saved = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**saved, **changes}))


def add_on_of(folder: Path) -> PixtralAddOn:
    return PixtralAddOn(folder, json.loads((folder / "config.json").read_text()))


def test_registry_knows_it() -> None:
    assert find_add_on("llava", "pixtral") is find_add_on("pixtral") is PixtralAddOn


@pytest.mark.parametrize("size", [(1, 49), (2000, 41), (1, 190)])
def test_a_picture_that_shrinks_to_nothing(copy: Path, size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size)
    with pytest.raises(ValueError, match=r"height=0|width=0"):
        PixtralReference(1).block(photo)
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} .*too thin"):
        add_on_of(copy).row_count(load_picture(photo))
    with load(copy) as engine, pytest.raises(ImageError, match="too thin"):
        engine.generate([1, IMG, 9], images=[photo])


# --- rows, for choices other than the usual -----------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"vision": {"hidden_act": "gelu"}},
        {"vision": {"num_attention_heads": 4, "patch_size": 8, "image_size": 16}},
        {"vision_feature_layer": -2},
        {"vision_feature_layer": [1, -1, 0]},
        {"multimodal_projector_bias": False},
        {"projector_hidden_act": "silu"},
    ],
    ids=str,
)
def test_rows_with(changes: dict[str, Any], tmp_path: Path, seed: int) -> None:
    reference = PixtralReference(seed, **changes)
    written(reference, tmp_path)
    photo = Photo(33, 47, seed)
    rows = np.array(add_on_of(tmp_path).encode_image(photo))
    error = relative_error(rows, reference.rows(photo.image))
    print(f"{changes}: {error:.1e}")
    assert error <= TOLERANCE


def test_rows_of_a_large_picture(copy: Path, seed: int) -> None:
    """Positions far beyond `image_size`, which limits nothing."""
    edit_json(copy / "preprocessor_config.json", size={"longest_edge": 640})
    reference = PixtralReference(1)
    reference.processor = PixtralImageProcessorPil(size={"longest_edge": 640})
    photo = Photo(650, 130, seed)
    rows = np.array(add_on_of(copy).encode_image(photo))
    assert rows.shape == (80 * 16, 64)
    assert relative_error(rows, reference.rows(photo.image)) <= TOLERANCE


def test_tokens_of_other_names(copy: Path, folder: Path) -> None:
    """processor_config.json says which the tokenizer's are."""
    file = copy / "tokenizer.json"
    file.write_text(
        file.read_text().replace("[IMG_BREAK]", "[LINE]").replace("[IMG_END]", "[DONE]")
    )
    names = {"image_break_token": "[LINE]", "image_end_token": "[DONE]"}
    edit_json(copy / "processor_config.json", **names)
    photo = Photo(28, 52, 1)
    tokens = add_on_of(copy).picture_tokens(photo)
    assert {BREAK, END} < set(tokens)
    assert tokens == add_on_of(folder).picture_tokens(photo)


@pytest.mark.parametrize("form", [["id", "content"], {"id": "12", "content": "[IMG_BREAK]"}, None])
def test_a_token_that_is_none(copy: Path, form: Any) -> None:
    """What is damaged is named, not the add-on."""
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    [place] = [i for i, t in enumerate(tokenizer["added_tokens"]) if t["content"] == "[IMG_BREAK]"]
    tokenizer["added_tokens"][place] = form
    tokenizer["model"]["vocab"].pop("[IMG_BREAK]", None)
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BrokenTokenizer, match=r"tokenizer\.json has no token '\[IMG_BREAK\]'"):
        load_model_kit(copy)


@pytest.mark.parametrize("damage", [{"model": []}, {"added_tokens": {}}, {"added_tokens": None}])
def test_a_tokenizer_of_another_form(copy: Path, damage: dict[str, Any]) -> None:
    edit_json(copy / "tokenizer.json", **damage)
    with pytest.raises(BrokenTokenizer, match=r"tokenizer"):
        load_model_kit(copy)


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.pixtral.add_on:PixtralAddOn"
    text = "\n".join(report.lines())
    assert "within 48 x 48 pixels" in text
    assert "a row for each 8 x 8 pixels, at most 36" in text


def test_other_llavas_are_refused_by_their_tower(copy: Path) -> None:
    """As published, where the tower's type may be the default of the class."""
    edit_config(copy, vision_config={"hidden_size": 32}, remove=("vision_feature_select_strategy",))
    with pytest.raises(UnsupportedCheckpoint, match=r"vision_config\.model_type is absent"):
        load_model_kit(copy)
    assert load_model_kit(copy, decoder_only=True).text_model is not None


# --- the decoder's config ---------------------------------------------------------------------


@pytest.mark.parametrize(("whole", "expected"), [("llava", "llama"), ("pixtral", "mistral")])
def test_decoder_of_a_text_config_without_a_type(copy: Path, whole: str, expected: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["text_config"]["model_type"], config["text_config"]["pad_token_id"]
    edit_config(copy, **{**config, "model_type": whole})
    assert read_config(copy).decoder_type == expected


@pytest.mark.parametrize("whole", [None, False, True])
@pytest.mark.parametrize("text", [None, False, True])
def test_ties_are_those_of_the_reference(copy: Path, whole: bool | None, text: bool | None) -> None:
    config = json.loads((copy / "config.json").read_text())
    for part, ties in ((config, whole), (config["text_config"], text)):
        part.pop("tie_word_embeddings")
        if ties is not None:
            part["tie_word_embeddings"] = ties
    (copy / "config.json").write_text(json.dumps(config))
    theirs = LlavaConfig.from_dict(config).tie_word_embeddings
    assert read_config(copy).decoder["tie_word_embeddings"] == theirs
