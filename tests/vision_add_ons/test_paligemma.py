"""PaliGemma's pixels and prompts against transformers' processors; what is cached, what refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.family_checks import BOS, WORDS, ask, written
from parity.paligemma_reference import IMAGE, ROWS, SIDE, PaliGemma2Reference, PaliGemmaReference
from pictures import ODD_SIZES, PHOTOGRAPHS, picture_of
from PIL import Image
from tiny import edit_config, edit_weights, with_words
from tokenizers.processors import TemplateProcessing
from transformers import PaliGemmaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from engine import Engine, load
from engine.prompt import PromptBuilder
from model_kit.kit import ModelKit, inspect_checkpoint, load_model_kit
from vision_add_ons.errors import (
    BrokenConfig,
    ImageCountError,
    MissingWeight,
    UnexpectedShape,
    UnexpectedWeight,
    UnsupportedCheckpoint,
)
from vision_add_ons.paligemma import PaliGemmaAddOn

SPECIAL = {"image_token": "<image>", "bos": "<bos>"}
WORD = list(WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(PaliGemmaReference(1), tmp_path_factory.mktemp("paligemma"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    with load(folder) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def words(folder: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer knows words and `<image>`; its ids mean nothing to the model."""
    other = tmp_path_factory.mktemp("words") / "paligemma"
    with_words(folder, other, demo, SPECIAL, bos_token="<bos>")
    return other


@pytest.fixture(scope="module", params=["adds no BOS", "adds BOS"])
def kit(words: Path, request: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelKit:
    """The tokenizer as the processor saves it, and as it is published."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(words)
    bos, image = tokenizer.bos_token_id, tokenizer.image_token_id
    other = Path(shutil.copytree(words, tmp_path_factory.mktemp("kit") / "paligemma"))
    if request.param == "adds BOS":
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", bos)]
        )
        tokenizer.save_pretrained(other)
    kit = load_model_kit(other)
    assert (kit.tokenizer.encode("hi")[0] == bos) == (request.param == "adds BOS")
    kit.add_on.image_token_id = kit.add_on.placeholder_id = image
    kit.add_on.bos_id = bos
    return kit


@pytest.fixture(scope="module")
def processor(words: Path) -> PaliGemmaProcessor:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(words)
    return PaliGemmaProcessor(SiglipImageProcessorPil(image_seq_length=ROWS), tokenizer)


def theirs(processor: PaliGemmaProcessor, text: str, pictures: list[Image.Image]) -> list[int]:
    ids = processor(images=[pictures], text=[text], truncation=False)["input_ids"]
    return [int(token) for token in ids[0]]


# --- pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [*PHOTOGRAPHS, *ODD_SIZES, (SIDE, SIDE)], ids=str)
def test_pixels_are_those_of_the_reference(which: Any, folder: Path, seed: int) -> None:
    photo = picture_of(which, seed)
    add_on = PaliGemmaAddOn(folder, json.loads((folder / "config.json").read_text()))
    ours = np.array(add_on.pixels(photo, SIDE, SIDE))
    reference = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    expected = reference([photo], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(ours, expected)


def test_saved_values_count(copy: Path) -> None:
    file = copy / "preprocessor_config.json"
    saved = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "resample": 0}
    file.write_text(json.dumps(saved))
    pixels = PaliGemmaAddOn(copy, json.loads((copy / "config.json").read_text())).pixels
    white = np.array(pixels(Image.new("RGB", (5, 5), (255, 255, 255)), 2, 2))
    assert np.allclose(white[0, 0], [0.9, 0.4, 0.7 / 3])
    assert pixels.resample == Image.Resampling.NEAREST


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_message_with_pictures(kit: ModelKit, processor: PaliGemmaProcessor, count: int) -> None:
    pictures = [Image.new("RGB", (30 + i, 20)) for i in range(count)]
    question = "answer en  what\n\nis this? "
    message = {"role": "user", "content": question, "images": pictures}
    ours = PromptBuilder(kit).build([message])
    assert ours.tokens == theirs(processor, question, pictures)
    assert [(s.start, s.length) for s in ours.spans] == [(i * ROWS, ROWS) for i in range(count)]
    assert ours.bidirectional == ((0, len(ours.tokens)),)


def test_turns_are_joined(kit: ModelKit, processor: PaliGemmaProcessor) -> None:
    """The family defines no turns: it sees all pictures, and then one text of all of them."""
    pictures = [Image.new("RGB", (30, 20)), Image.new("RGB", (9, 9))]
    messages = [
        {"role": "user", "content": "caption en", "images": pictures[:1]},
        {"role": "assistant", "content": "a square"},
        {"role": "user", "content": "and this", "images": pictures[1:]},
    ]
    ours = PromptBuilder(kit).build(messages)
    assert ours.tokens == theirs(processor, "caption en\na square\nand this", pictures)
    assert [span.picture.size for span in ours.spans] == [(30, 20), (9, 9)]


def test_messages_without_pictures_are_plain_text(kit: ModelKit) -> None:
    ours = PromptBuilder(kit).build([{"role": "user", "content": "no picture here"}])
    assert kit.tokenizer.decode(ours.tokens) == "<bos>no picture here\n"
    assert not ours.bidirectional


@pytest.mark.parametrize(
    "text",
    [
        "<image>caption en",
        "<image><bos>caption en",
        "<image><image>\ncaption both",
        "look at <image> and at <image> now",
    ],
)
def test_text_that_places_its_pictures(
    kit: ModelKit, processor: PaliGemmaProcessor, text: str
) -> None:
    pictures = [Image.new("RGB", (30, 20))] * text.count("<image>")
    ours = PromptBuilder(kit).build(text, pictures)
    # Their processor also ends it with a line break; a text is run as it stands.
    expected = theirs(processor, text.replace("<bos>", ""), pictures)
    assert [*ours.tokens, *kit.tokenizer.encode("\n", add_special_tokens=False)] == expected


def test_text_that_does_not_place_its_pictures(
    kit: ModelKit, processor: PaliGemmaProcessor
) -> None:
    pictures = [Image.new("RGB", (30, 20))] * 2
    ours = PromptBuilder(kit).build("<bos>caption en\n", pictures)
    assert ours.tokens == theirs(processor, "caption en", pictures)


def test_text_alone_is_left_alone(kit: ModelKit) -> None:
    text = "Nothing to see\n\n\nhere"
    assert PromptBuilder(kit).build(text).tokens == kit.tokenizer.encode(text)


@pytest.mark.parametrize(("marks", "given"), [(1, 0), (1, 2), (3, 2)])
def test_counts_that_disagree(engine: Engine, marks: int, given: int) -> None:
    picture = Image.new("RGB", (9, 9))
    with pytest.raises(ImageCountError, match=f"{marks} .*{given}"):
        engine.generate([BOS, *[IMAGE] * marks, 9], images=[picture] * given)


# --- what is cached of a prompt that sees itself whole -----------------------------------------


def test_the_same_prompt_again(engine: Engine) -> None:
    prompt = [IMAGE, BOS, *WORD[:9]]
    picture = [Image.new("RGB", (30, 20), "red")]
    answer, logits, _ = ask(engine, prompt, picture)
    again, same, end = ask(engine, prompt, picture)
    assert (end.cached_tokens, end.images_encoded) == (end.prompt_tokens - 1, 0)
    assert again == answer
    assert np.array_equal(logits, same)


@pytest.mark.parametrize("other", ["text after it", "another picture", "less text", "no picture"])
def test_nothing_serves_another_prompt(engine: Engine, folder: Path, other: str) -> None:
    """Not even what both begin with: each token has seen those at the end."""
    red, blue = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    prompt = [BOS, *WORD[:5], IMAGE, *WORD[5:9]]
    answer, _, _ = ask(engine, prompt, [red])
    changed, pictures = {
        "text after it": ([*prompt, *answer, *WORD[9:12]], [red]),
        "another picture": (prompt, [blue]),
        "less text": (prompt[:-1], [red]),
        "no picture": ([*prompt[:6], *WORD[5:9]], []),
    }[other]
    warm, logits, end = ask(engine, changed, pictures)
    assert end.cached_tokens == 0
    with load(folder) as fresh:
        cold, expected, _ = ask(fresh, changed, pictures)
    assert warm == cold
    assert np.array_equal(logits, expected)


def test_text_before_a_picture_is_not_reused(engine: Engine) -> None:
    text = [BOS, *WORD[:20]]
    ask(engine, text, [])
    _, _, end = ask(engine, [*text, IMAGE, WORD[0]], [Image.new("RGB", (9, 9))])
    assert end.cached_tokens == 0


def test_nothing_but_pictures(tmp_path: Path) -> None:
    """Also beyond Gemma 2's window, and asked twice."""
    reference = PaliGemma2Reference(1)
    written(reference, tmp_path)
    pictures = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    expected = reference.logits([IMAGE] * 2 * ROWS, pictures, [])[-1]
    expected -= expected.mean()
    with load(tmp_path) as engine:
        for _ in range(2):
            _, logits, _ = ask(engine, [IMAGE, IMAGE], pictures)
            error = np.linalg.norm(logits[0] - expected) / np.linalg.norm(expected)
            assert error <= 2e-5


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.paligemma:PaliGemmaAddOn"
    assert any(f"{SIDE} x {SIDE} pixels, {ROWS} rows" in line for line in report.lines())


@pytest.mark.parametrize(
    ("where", "field", "value", "error"),
    [
        ("vision_config", "model_type", "clip_vision_model", UnsupportedCheckpoint),
        ("vision_config", "hidden_act", "gelu", UnsupportedCheckpoint),
        ("vision_config", "num_channels", 1, UnsupportedCheckpoint),
        ("vision_config", "patch_size", -16, BrokenConfig),
        ("text_config", "model_type", "llama", UnsupportedCheckpoint),
        ("text_config", "hidden_act", "silu", UnsupportedCheckpoint),
        ("text_config", "tie_word_embeddings", False, UnsupportedCheckpoint),
        ("", "tie_word_embeddings", False, UnsupportedCheckpoint),
        ("", "image_token_index", 96, UnsupportedCheckpoint),
        ("", "text_config", None, UnsupportedCheckpoint),
    ],
)
def test_config_that_is_not_served(
    copy: Path, where: str, field: str, value: Any, error: type[Exception]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (config[where] if where else config)[field] = value
    edit_config(copy, **config)
    with pytest.raises(error, match=where if field == "model_type" else field):
        load_model_kit(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("do_resize", False),
        ("do_normalize", False),
        ("size", {"height": 32, "width": 64}),
        ("size", {"shortest_edge": 64}),
        ("image_seq_length", 256),
    ],
)
def test_image_processor_that_is_not_served(copy: Path, field: str, value: Any) -> None:
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(UnsupportedCheckpoint, match=field):
        load_model_kit(copy)


FC1, LINEAR = "vision_tower.encoder.layers.1.mlp.fc1.weight", "multi_modal_projector.linear.bias"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: t.update({FC1: t[FC1][:-1].clone()}), UnexpectedShape, "fc1.weight"),
        (lambda t: t.update({f"{FC1}.more": t[FC1].clone()}), UnexpectedWeight, "more"),
        (lambda t: t.update({"ears.weight": t[FC1].clone()}), UnexpectedWeight, "ears"),
        (lambda t: t.pop(FC1), MissingWeight, "fc1.weight"),
        (lambda t: t.pop(LINEAR), MissingWeight, "projector.linear.bias"),
    ],
    ids=["shape", "spare", "unknown", "missing", "no projector"],
)
def test_wrong_weights(copy: Path, change: Any, error: type[Exception], match: str) -> None:
    edit_weights(copy, change)
    with pytest.raises(error, match=match):
        load_model_kit(copy)


def test_weights_without_use(copy: Path) -> None:
    """Of the tower's own head, and of old checkpoints."""
    spare = {"head.probe": torch.ones(1, 1, 32), "embeddings.position_ids": torch.arange(ROWS)}
    edit_weights(copy, lambda t: t.update({f"vision_tower.{n}": w for n, w in spare.items()}))
    assert load_model_kit(copy).add_on is not None
