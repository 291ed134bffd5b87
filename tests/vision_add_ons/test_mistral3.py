"""Mistral 3 where it differs from Pixtral: merged patches, and two decoders."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from parity.family_checks import TOLERANCE, WORDS, relative_error, written
from parity.mistral3_reference import Ministral3Reference, Mistral3Reference
from parity.moxin_checkpoint import Photo
from parity.pixtral_reference import BREAK, END, IMG, kit_with_words, processor_of, write_flat
from pictures import ODD_SIZES, PHOTOGRAPHS, picture_of
from PIL import Image
from tiny import edit_config, edit_weights
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from engine.images import load_picture
from engine.prompt import PromptBuilder
from model_kit.config import read_config
from model_kit.kit import ModelKit, inspect_checkpoint, load_model_kit
from vision_add_ons.errors import (
    BrokenConfig,
    MissingWeight,
    UnexpectedShape,
    UnsupportedCheckpoint,
)
from vision_add_ons.mistral3 import Mistral3AddOn
from vision_add_ons.registry import find_add_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Mistral3Reference(1), tmp_path_factory.mktemp("mistral3"))


def add_on_of(folder: Path) -> Mistral3AddOn:
    return Mistral3AddOn(folder, json.loads((folder / "config.json").read_text()))


def test_registry_knows_it() -> None:
    assert find_add_on("mistral3") is Mistral3AddOn


# --- pixels and rows --------------------------------------------------------------------------


@pytest.mark.parametrize("which", [*PHOTOGRAPHS, *ODD_SIZES], ids=str)
def test_pixels_are_those_of_the_reference(copy: Path, which: Any, seed: int) -> None:
    """The processor makes sides multiples of merged patches, whatever it has saved."""
    photo = picture_of(which, seed)
    saved = PixtralImageProcessorPil(size={"longest_edge": 700})
    saved.save_pretrained(copy)
    assert saved.patch_size == {"height": 16, "width": 16}
    add_on = add_on_of(copy)
    lines, columns = add_on.grid(photo.size)
    ours = np.array(add_on.pixels(photo, columns * 8, lines * 8))
    theirs = saved([photo], patch_size={"height": 8, "width": 8}, return_tensors="np")
    assert np.array_equal(ours, theirs["pixel_values"][0].transpose(1, 2, 0))
    assert add_on.row_count(load_picture(photo)) == lines * columns


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


# --- prompts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kit(folder: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelKit:
    return kit_with_words(folder, demo, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def processor(kit: ModelKit) -> Any:
    return processor_of(kit, Mistral3Reference(1))


SIZES = ((40, 30), (4, 4), (9, 47), (120, 20))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_prompt_of_messages_is_the_processor_s(kit: ModelKit, processor: Any, count: int) -> None:
    pictures = [Image.new("RGB", size) for size in SIZES[:count]]
    messages = [
        {"role": "system", "content": "Be  brief.\n"},
        {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "\nAnd these?", "images": pictures[1:]},
    ]
    ours = PromptBuilder(kit).build(messages)
    text = (
        "<|im_start|>[SYSTEM_PROMPT]Be  brief.\n[/SYSTEM_PROMPT]"
        "[INST][IMG]What  is\n\nthis?[/INST]A square.<|im_end|>"
        f"[INST]{'[IMG]' * (count - 1)}\nAnd these?[/INST]"
    )
    theirs = processor(images=pictures, text=text, add_special_tokens=False)["input_ids"][0]
    assert ours.tokens == theirs.tolist()
    assert [span.picture.size for span in ours.spans] == list(SIZES[:count])


def test_tokens_of_a_picture(folder: Path) -> None:
    tokens = add_on_of(folder).picture_tokens(Photo(20, 16, 0))
    assert tokens == [IMG, IMG, IMG, BREAK, IMG, IMG, IMG, END]


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.mistral3:Mistral3AddOn"
    assert "a row for each 8 x 8 pixels, at most 36" in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("spatial_merge_size", 0, BrokenConfig),
        ("spatial_merge_size", 3, UnsupportedCheckpoint),
        ("vision_feature_layer", [0, -1], UnsupportedCheckpoint),
        ("projector_hidden_act", "relu", UnsupportedCheckpoint),
        ("vision_config", {"model_type": "siglip_vision_model"}, UnsupportedCheckpoint),
        ("quantization_config", {"quant_method": "fp8"}, UnsupportedCheckpoint),
    ],
)
def test_config_that_is_not_served(
    copy: Path, field: str, value: Any, error: type[Exception]
) -> None:
    edit_config(copy, **{field: value})
    with pytest.raises(error, match=field):
        load_model_kit(copy)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t, name: t.pop(name), MissingWeight),
        (lambda t, name: t.update({name: t[name][:, 1:].clone()}), UnexpectedShape),
    ],
)
def test_wrong_weights(copy: Path, change: Any, error: type[Exception]) -> None:
    name = "multi_modal_projector.patch_merger.merging_layer.weight"
    edit_weights(copy, lambda tensors: change(tensors, name))
    with pytest.raises(error, match=name):
        load_model_kit(copy)


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
