"""Pixtral's pixels and prompts against transformers' processors; what is refused, and how."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.family_checks import TOLERANCE, relative_error, written
from parity.moxin_checkpoint import Photo
from parity.pixtral_reference import (
    BREAK,
    END,
    IMG,
    PixtralReference,
    kit_with_words,
    processor_of,
)
from pictures import ODD_SIZES, PHOTOGRAPHS, picture_of
from PIL import Image
from tiny import edit_config, edit_weights
from transformers import LlavaConfig
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from engine import load
from engine.images import load_picture
from engine.prompt import PromptBuilder
from model_kit.config import read_config
from model_kit.kit import ModelKit, inspect_checkpoint, load_model_kit
from vision_add_ons.errors import (
    BrokenConfig,
    BrokenTokenizer,
    ImageCountError,
    ImageError,
    MissingWeight,
    UnexpectedShape,
    UnexpectedWeight,
    UnsupportedCheckpoint,
)
from vision_add_ons.pixtral import PixtralAddOn
from vision_add_ons.registry import find_add_on


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


# --- pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "size"),
    [(which, {"longest_edge": 1024}) for which in (*PHOTOGRAPHS, *ODD_SIZES)]
    + [(which, {"longest_edge": 100}) for which in ("coffee", (100, 8), (101, 99), (7, 400))]
    + [(which, {"height": 60, "width": 200}) for which in ("rocket", "coffee", (200, 60))],
    ids=str,
)
def test_pixels_are_those_of_the_reference(
    copy: Path, which: Any, size: dict[str, int], seed: int
) -> None:
    photo = picture_of(which, seed)
    edit_json(copy / "preprocessor_config.json", size=size)
    add_on = add_on_of(copy)
    lines, columns = add_on.grid(photo.size)
    ours = np.array(add_on.pixels(photo, columns * 8, lines * 8))
    theirs = PixtralImageProcessorPil(size=size, patch_size={"height": 8, "width": 8})
    expected = theirs([photo], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(ours, expected)
    picture = load_picture(photo)
    assert add_on.row_count(picture) == lines * columns
    assert add_on.picture_tokens(picture).count(add_on.placeholder_id) == lines * columns


@pytest.mark.parametrize("size", [(1, 49), (2000, 41), (1, 190)])
def test_a_picture_that_shrinks_to_nothing(copy: Path, size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size)
    with pytest.raises(ValueError, match=r"height=0|width=0"):
        PixtralReference(1).block(photo)
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} .*too thin"):
        add_on_of(copy).row_count(load_picture(photo))
    with load(copy) as engine, pytest.raises(ImageError, match="too thin"):
        engine.generate([1, IMG, 9], images=[photo])


def test_saved_means_count(copy: Path) -> None:
    edit_json(copy / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3])
    white = add_on_of(copy).pixels(Image.new("RGB", (5, 5), (255, 255, 255)), 8, 8)
    assert np.allclose(np.array(white)[0, 0], [0.9, 0.4, 0.7 / 3])


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


# --- prompts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kit(folder: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelKit:
    return kit_with_words(folder, demo, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def processor(kit: ModelKit) -> Any:
    return processor_of(kit, PixtralReference(1))


SIZES = ((40, 30), (8, 8), (9, 47), (120, 20))


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
        "<|im_start|>[INST][IMG]What  is\n\nthis?[/INST]A square.<|im_end|>"
        f"[INST]Be  brief.\n\n\n{'[IMG]' * (count - 1)}\nAnd these?[/INST]"
    )
    theirs = processor(images=pictures, text=text, add_special_tokens=False)["input_ids"][0]
    assert ours.tokens == theirs.tolist()
    assert [span.picture.size for span in ours.spans] == list(SIZES[:count])
    for span in ours.spans:
        block = ours.tokens[span.start : span.end]
        assert block == kit.add_on.picture_tokens(span.picture)
        assert block.count(kit.add_on.placeholder_id) == kit.add_on.row_count(span.picture)
    assert ours.bidirectional == ()


def test_prompt_of_a_text_is_the_processor_s(kit: ModelKit, processor: Any) -> None:
    pictures = [Image.new("RGB", size) for size in SIZES[:2]]
    text = "Look: [IMG]\nNow say what it is,[IMG][INST]!"
    ours = PromptBuilder(kit).build(text, pictures)
    assert ours.tokens == processor(images=pictures, text=text)["input_ids"][0].tolist()


def test_tokens_of_a_picture(folder: Path) -> None:
    tokens = add_on_of(folder).picture_tokens(Photo(24, 16, 0))
    assert tokens == [IMG, IMG, IMG, BREAK, IMG, IMG, IMG, END]


@pytest.mark.parametrize(("marks", "given"), [(0, 1), (1, 0), (1, 2), (3, 2)])
def test_counts_that_disagree(folder: Path, marks: int, given: int) -> None:
    picture = Image.new("RGB", (9, 9))
    with load(folder) as engine, pytest.raises(ImageCountError, match=f"{marks} .*{given}"):
        engine.generate([1, *[IMG] * marks, 9], images=[picture] * given)


def test_tokens_go_by_their_usual_names(kit: ModelKit) -> None:
    ids = kit.add_on.placeholder_id, kit.add_on.break_id, kit.add_on.end_id
    assert kit.tokenizer.convert_ids_to_tokens(ids) == ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]


def test_a_token_that_the_tokenizer_lacks(copy: Path) -> None:
    edit_json(copy / "processor_config.json", image_break_token="[LINE]")
    with pytest.raises(BrokenTokenizer, match=r"'\[LINE\]'.* image_break_token"):
        add_on_of(copy)


def test_an_image_token_of_another_id(copy: Path) -> None:
    edit_config(copy, image_token_index=BREAK)
    with pytest.raises(BrokenConfig, match=f"image_token_index is {BREAK}, .* {IMG}"):
        add_on_of(copy)


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.pixtral.add_on:PixtralAddOn"
    text = "\n".join(report.lines())
    assert "within 48 x 48 pixels" in text
    assert "a row for each 8 x 8 pixels, at most 36" in text


@pytest.mark.parametrize(
    ("where", "field", "value", "error"),
    [
        ("vision_config", "model_type", "clip_vision_model", UnsupportedCheckpoint),
        ("vision_config", "model_type", "nobody_knows", UnsupportedCheckpoint),
        ("vision_config", "hidden_act", "quick_gelu", UnsupportedCheckpoint),
        ("vision_config", "num_channels", 4, UnsupportedCheckpoint),
        ("vision_config", "head_dim", 16, UnsupportedCheckpoint),
        ("vision_config", "patch_size", 0, BrokenConfig),
        ("vision_config", "patch_size", [8, 8], BrokenConfig),
        ("vision_config", "num_hidden_layers", 0, BrokenConfig),
        ("", "vision_config", ["pixtral"], BrokenConfig),
        ("", "projector_hidden_act", "relu", UnsupportedCheckpoint),
        ("", "vision_feature_select_strategy", "default", UnsupportedCheckpoint),
        ("", "vision_feature_layer", 4, BrokenConfig),
        ("", "vision_feature_layer", [-1, -5], BrokenConfig),
        ("", "vision_feature_layer", [], BrokenConfig),
        ("", "quantization_config", {"quant_method": "fp8"}, UnsupportedCheckpoint),
        ("text_config", "quantization_config", {"quant_method": "awq"}, UnsupportedCheckpoint),
        ("text_config", "model_type", "qwen2", UnsupportedCheckpoint),
    ],
)
def test_config_that_is_not_served(
    copy: Path, where: str, field: str, value: Any, error: type[Exception]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (config[where] if where else config)[field] = value
    edit_config(copy, **config)
    with pytest.raises(error, match=f"{where}.{field}" if field == "model_type" else field):
        load_model_kit(copy)


def test_another_rope_in_the_tower(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    edit_config(copy, **config)
    with pytest.raises(UnsupportedCheckpoint, match=r"vision_config\.rope_parameters\.rope_type"):
        load_model_kit(copy)


def test_other_llavas_are_refused_by_their_tower(copy: Path) -> None:
    """As published, where the tower's type may be the default of the class."""
    edit_config(copy, vision_config={"hidden_size": 32}, remove=("vision_feature_select_strategy",))
    with pytest.raises(UnsupportedCheckpoint, match=r"vision_config\.model_type is absent"):
        load_model_kit(copy)
    assert load_model_kit(copy, decoder_only=True).text_model is not None


@pytest.mark.parametrize(
    ("file", "field", "value", "error"),
    [
        ("preprocessor_config", "do_resize", False, UnsupportedCheckpoint),
        ("preprocessor_config", "do_center_crop", True, UnsupportedCheckpoint),
        ("preprocessor_config", "size", {"shortest_edge": 48}, BrokenConfig),
        ("preprocessor_config", "size", {"longest_edge": "48"}, BrokenConfig),
        ("processor_config", "patch_size", 16, UnsupportedCheckpoint),
        ("processor_config", "spatial_merge_size", 2, UnsupportedCheckpoint),
    ],
)
def test_processor_that_is_not_served(
    copy: Path, file: str, field: str, value: Any, error: type[Exception]
) -> None:
    edit_json(copy / f"{file}.json", **{field: value})
    with pytest.raises(error, match=field):
        load_model_kit(copy)


TOWER_WEIGHT = "vision_tower.transformer.layers.1.feed_forward.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda t: t.pop(TOWER_WEIGHT), MissingWeight, TOWER_WEIGHT),
        (lambda t: t.pop("multi_modal_projector.linear_2.bias"), MissingWeight, "linear_2.bias"),
        (
            lambda t: t.update({TOWER_WEIGHT: t[TOWER_WEIGHT][:-1].clone()}),
            UnexpectedShape,
            TOWER_WEIGHT,
        ),
        (
            lambda t: t.update({"vision_tower.more": t[TOWER_WEIGHT].clone()}),
            UnexpectedWeight,
            "vision_tower.more",
        ),
        (
            lambda t: t.update({"audio_tower.more": t[TOWER_WEIGHT].clone()}),
            UnexpectedWeight,
            "audio_tower.more",
        ),
    ],
)
def test_wrong_weights(copy: Path, change: Any, error: type[Exception], named: str) -> None:
    edit_weights(copy, change)
    with pytest.raises(error, match=named):
        load_model_kit(copy)


def test_no_vision_weights_at_all(copy: Path) -> None:
    def text_only(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if not n.startswith("language_model.")]:
            del tensors[name]

    edit_weights(copy, text_only)
    with pytest.raises(MissingWeight, match=r"vision_tower\..*ln_pre"):
        load_model_kit(copy)


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
