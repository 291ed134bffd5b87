"""Gemma 3's pixels and prompts against transformers' processors; what is refused, and how."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from parity.family_checks import (
    TOLERANCE,
    WORDS,
    ask,
    centred,
    relative_error,
    written,
)
from parity.gemma3_reference import ROW, Gemma3Reference
from pictures import ODD_SIZES, PHOTOGRAPHS, picture_of
from PIL import Image
from tiny import edit_config, edit_weights, with_words
from transformers import Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from engine import GenerationOptions, load
from engine.prefill import run_ahead
from engine.prompt import PromptBuilder
from model_kit.kit import ModelKit, inspect_checkpoint, load_model_kit
from vision_add_ons.errors import (
    BrokenConfig,
    ImageCountError,
    MissingWeight,
    PromptError,
    UnexpectedShape,
    UnexpectedWeight,
    UnsupportedCheckpoint,
)
from vision_add_ons.gemma3 import Gemma3AddOn
from vision_add_ons.weights import read_weights

SPECIAL = {
    "boi_token": "<start_of_image>",
    "image_token": "<image_soft_token>",
    "eoi_token": "<end_of_image>",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Gemma3Reference(1), tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module")
def kit(folder: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelKit:
    """With a tokenizer that knows words and Gemma's special tokens; its ids mean nothing here."""
    other = tmp_path_factory.mktemp("words") / "gemma3"
    tokenizer = with_words(folder, other, demo, SPECIAL, bos_token="<|im_start|>")
    kit = load_model_kit(other)
    kit.add_on.image_token_id = kit.add_on.placeholder_id = tokenizer.image_token_id
    return kit


@pytest.fixture(scope="module")
def processor(kit: ModelKit) -> Gemma3Processor:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(kit.folder)
    return Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer, image_seq_length=16)


# --- pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [*PHOTOGRAPHS, *ODD_SIZES, (64, 64)], ids=str)
def test_pixels_are_those_of_the_reference(which: Any, kit: ModelKit, seed: int) -> None:
    photo = picture_of(which, seed)
    ours = np.array(kit.add_on.pixels(photo, 64, 64))
    size = {"height": 64, "width": 64}
    half = [0.5, 0.5, 0.5]
    theirs = Gemma3ImageProcessorPil(size=size, image_mean=half, image_std=half)
    expected = theirs([photo], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(ours, expected)


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_prompt_of_messages_is_the_processor_s(
    kit: ModelKit, processor: Gemma3Processor, count: int
) -> None:
    pictures = [Image.new("RGB", (30 + i, 20)) for i in range(count)]
    messages = [
        {"role": "system", "content": "Be  brief.\n"},
        {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "\nAnd these?", "images": pictures[1:]},
    ]
    ours = PromptBuilder(kit).build(messages)
    marks = "<start_of_image>"
    text = (
        "<|im_start|><start_of_turn>user\nBe  brief.\n\n\n"
        f"{marks}What  is\n\nthis?<end_of_turn>\n<start_of_turn>model\nA square.<end_of_turn>\n"
        f"<start_of_turn>user\n{marks * (count - 1)}And these?<end_of_turn>\n<start_of_turn>model\n"
    )
    theirs = processor(images=pictures, text=text, add_special_tokens=False)["input_ids"][0]
    assert ours.tokens == list(theirs)
    assert len(ours.spans) == count
    row = kit.add_on.placeholder_id
    for span in ours.spans:
        assert span.length == 16
        assert set(ours.tokens[span.start : span.end]) == {row}
    assert ours.bidirectional == tuple((s.start, s.end) for s in ours.spans)


def test_prompt_of_a_text_is_the_processor_s(kit: ModelKit, processor: Gemma3Processor) -> None:
    picture = Image.new("RGB", (30, 20))
    text = "Look:\n<start_of_image>\nNow say what it is, and this <start_of_image>!"
    ours = PromptBuilder(kit).build(text, [picture, picture])
    theirs = processor(images=[picture] * 2, text=text)["input_ids"][0]
    assert ours.tokens == list(theirs)


def test_an_answer_cannot_mark_a_place_for_a_picture(kit: ModelKit) -> None:
    """Else the conversation that it belongs to could not go on."""
    build = PromptBuilder(kit).build
    answer = "I write <start_of_image> or<image_soft_token>."
    messages = [
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And now?"},
    ]
    plain = [*messages[:1], {"role": "assistant", "content": "I write  or."}, *messages[2:]]
    assert build(messages).tokens == build(plain).tokens
    with pytest.raises(ImageCountError, match=r"<start_of_image>.* in a text marks one"):
        build([{"role": "user", "content": answer}])


def test_text_alone_is_left_alone(kit: ModelKit) -> None:
    tokens = PromptBuilder(kit).build("Nothing to see\n\n\nhere").tokens
    assert kit.tokenizer.decode(tokens) == "Nothing to see\n\n\nhere"


@pytest.mark.parametrize(("marks", "given"), [(0, 1), (1, 0), (1, 2), (3, 2)])
def test_counts_that_disagree(folder: Path, marks: int, given: int) -> None:
    picture = Image.new("RGB", (9, 9))
    with load(folder) as engine, pytest.raises(ImageCountError, match=f"{marks} .*{given}"):
        engine.generate([1, *[ROW] * marks, 9], images=[picture] * given)


def test_a_picture_at_the_very_end(folder: Path) -> None:
    """Whose last row mlx-lm's loop would run alone: it is run with the others, and once more."""
    picture = Image.new("RGB", (9, 9), "red")
    reference = Gemma3Reference(1)
    tokens = [1, *list(WORDS)[:5], *[ROW] * 16]
    expected = reference.logits(tokens, [picture], [])[-1]
    with load(folder) as engine:
        answer = engine.generate([*tokens[:6], ROW], images=[picture]).result()
    assert answer.tokens[0] == int(expected.argmax())


def test_pictures_that_touch_see_each_other(folder: Path, seed: int) -> None:
    """Only token ids can say so; transformers takes rows that follow each other for one picture."""
    reference = Gemma3Reference(1)
    pictures = [picture_of((20, 20), seed), picture_of((30, 20), seed + 1)]
    expected = centred(reference.logits([1, 9, *[ROW] * 32, 10, 11], pictures, [])[-1:])
    with load(folder) as engine:
        _, ours, _ = ask(engine, [1, 9, ROW, ROW, 10, 11], pictures, prefill_step_size=5)
    assert relative_error(ours[:1], expected) <= TOLERANCE


def test_a_picture_at_the_end_of_a_long_prompt(folder: Path) -> None:
    picture = Image.new("RGB", (9, 9), "red")
    with load(folder) as engine:
        prompt = [1, *list(WORDS)[:30], ROW]
        with pytest.raises(PromptError, match="let some text follow"):
            engine.generate(prompt, images=[picture]).result()
        assert engine.generate([*prompt, 9], images=[picture]).result().tokens


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.gemma3:Gemma3AddOn"
    assert any("64 x 64 pixels, 16 rows" in line for line in report.lines())


@pytest.mark.parametrize(
    ("where", "field", "value", "error"),
    [
        ("vision_config", "model_type", "clip_vision_model", UnsupportedCheckpoint),
        ("vision_config", "hidden_act", "gelu", UnsupportedCheckpoint),
        ("vision_config", "num_channels", 1, UnsupportedCheckpoint),
        ("vision_config", "patch_size", 0, BrokenConfig),
        ("vision_config", "num_attention_heads", -1, BrokenConfig),
        ("vision_config", "num_attention_heads", 5, BrokenConfig),
        ("text_config", "use_bidirectional_attention", True, UnsupportedCheckpoint),
        ("text_config", "final_logit_softcapping", 30.0, UnsupportedCheckpoint),
        ("", "mm_tokens_per_image", 15, BrokenConfig),
        ("", "mm_tokens_per_image", 9, BrokenConfig),
    ],
)
def test_config_that_is_not_served(
    copy: Path, where: str, field: str, value: Any, error: type[Exception]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (config[where] if where else config)[field] = value
    edit_config(copy, **config)
    with pytest.raises(error, match=field if field != "model_type" else "vision_config"):
        load_model_kit(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("do_pan_and_scan", True),
        ("do_resize", False),
        ("do_normalize", False),
        ("size", {"height": 32, "width": 64}),
        ("size", {"shortest_edge": 64}),
    ],
)
def test_image_processor_that_is_not_served(copy: Path, field: str, value: Any) -> None:
    file = copy / "preprocessor_config.json"
    saved = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**saved, field: value}))
    with pytest.raises(UnsupportedCheckpoint, match=field):
        load_model_kit(copy)


def test_saved_means_count(copy: Path) -> None:
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    pixels = Gemma3AddOn(copy, json.loads((copy / "config.json").read_text())).pixels
    grey = np.array(pixels(Image.new("RGB", (5, 5), (255, 255, 255)), 2, 2))
    assert np.allclose(grey[0, 0], [0.9, 0.4, 0.7 / 3])


def tensor(folder: Path, end: str) -> str:
    return next(name for name in read_weights(folder) if name.endswith(end))


def test_wrong_weights(copy: Path) -> None:
    name = tensor(copy, "layers.1.mlp.fc1.weight")
    projection = tensor(copy, "mm_input_projection_weight")
    changes: list[tuple[Any, type[Exception], str]] = [
        (lambda t: t.update({name: t[name][:-1].clone()}), UnexpectedShape, "fc1.weight"),
        (lambda t: t.update({f"{name}.more": t[name].clone()}), UnexpectedWeight, "more"),
        (lambda t: t.pop(projection), MissingWeight, "mm_input_projection_weight"),
    ]
    for change, error, match in changes:
        original = (copy / "model.safetensors").read_bytes()
        edit_weights(copy, change)
        with pytest.raises(error, match=match):
            load_model_kit(copy)
        (copy / "model.safetensors").write_bytes(original)


def test_untied_without_a_head(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = False
    edit_config(copy, **config)
    with pytest.raises(MissingWeight, match=r"lm_head\.weight"):
        load_model_kit(copy)


def test_the_caller_s_embeddings_stay_as_they_are(kit: ModelKit) -> None:
    """mlx-lm's Gemma 3 scales the array that it is given."""
    embeddings = mx.random.normal((12, 64))
    before = np.array(embeddings)
    run_ahead(
        kit.text_model,
        [9] * 12,
        embeddings,
        kit.make_cache(),
        [(2, 6)],
        GenerationOptions(prefill_step_size=5),
        lambda *_: None,
    )
    assert np.array_equal(np.array(embeddings), before)


def test_nothing_of_others_is_changed_by_loading(folder: Path) -> None:
    """mlx-vlm's import sets environment variables and replaces a method of transformers."""
    script = f"""
import os
from transformers import AutoProcessor
before = dict(os.environ), vars(AutoProcessor)["from_pretrained"]
from engine import load
load({str(folder)!r}).close()
import sys
assert "mlx_vlm.models.gemma3" in sys.modules
assert (dict(os.environ), vars(AutoProcessor)["from_pretrained"]) == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)
