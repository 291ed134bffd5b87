"""Qwen2-VL's prompts against transformers' processor, its decoder's config; what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from parity.family_checks import BOS, WORDS, ask, relative_error, written
from parity.qwen2_5_vl_reference import Qwen25VLReference
from parity.qwen2_vl_reference import IMAGE, PATCH, VIDEO, Qwen2VLReference
from PIL import Image
from tiny import edit_config, edit_weights, with_words
from transformers import PreTrainedTokenizerFast, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine import load
from engine.images import load_picture
from engine.prompt import PromptBuilder
from model_kit.config import read_config
from model_kit.kit import ModelKit, inspect_checkpoint, load_model_kit
from vision_add_ons.errors import (
    BrokenConfig,
    ImageCountError,
    ImageError,
    MissingWeight,
    PromptError,
    UnexpectedShape,
    UnexpectedWeight,
    UnsupportedCheckpoint,
)
from vision_add_ons.weights import read_weights

SPECIAL = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Qwen2VLReference(1), tmp_path_factory.mktemp("qwen2_vl"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Qwen25VLReference(1), tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture(scope="module")
def kit(folder: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelKit:
    """With a tokenizer that knows words and Qwen's special tokens; its ids mean nothing here."""
    other = tmp_path_factory.mktemp("words") / "qwen2_vl"
    tokenizer = with_words(folder, other, demo, SPECIAL)
    kit = load_model_kit(other)
    assert kit.add_on is not None
    kit.add_on.image_token_id = kit.add_on.placeholder_id = tokenizer.image_token_id
    return kit


class Processor(Qwen2VLProcessor):
    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Let there be no video processor: it needs torchvision."""


@pytest.fixture(scope="module")
def processor(kit: ModelKit) -> Qwen2VLProcessor:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(kit.folder)
    return Processor(Qwen2VLImageProcessorPil.from_pretrained(kit.folder), tokenizer)


# --- prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_prompt_of_messages_is_the_processor_s(
    kit: ModelKit, processor: Qwen2VLProcessor, count: int
) -> None:
    pictures = [Image.new("RGB", (30 + 9 * i, 40)) for i in range(count)]
    messages = [
        {"role": "user", "content": "What  is\n\nthis?", "images": pictures[:1]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "And these?", "images": pictures[1:]},
    ]
    ours = PromptBuilder(kit).build(messages)
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{mark}What  is\n\nthis?<|im_end|>\n"
        "<|im_start|>assistant\nA square.<|im_end|>\n"
        f"<|im_start|>user\n{mark * (count - 1)}And these?<|im_end|>\n<|im_start|>assistant\n"
    )
    theirs = processor(images=pictures, text=text)["input_ids"][0]
    assert ours.tokens == list(theirs)
    assert kit.add_on is not None
    assert [s.length for s in ours.spans] == [kit.add_on.row_count(s.picture) for s in ours.spans]
    for span in ours.spans:
        assert set(ours.tokens[span.start : span.end]) == {kit.add_on.placeholder_id}


def test_a_system_message_stands_in_place_of_the_standing_one(kit: ModelKit) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = kit.tokenizer.decode(PromptBuilder(kit).build(messages).tokens)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_prompt_of_a_text_is_the_processor_s(kit: ModelKit, processor: Qwen2VLProcessor) -> None:
    pictures = [Image.new("RGB", (30, 20)), Image.new("RGB", (64, 50))]
    text = "Say what <|image_pad|> is, and <|vision_start|><|image_pad|><|vision_end|>!"
    ours = PromptBuilder(kit).build(text, pictures)
    assert ours.tokens == list(processor(images=pictures, text=text)["input_ids"][0])


@pytest.mark.parametrize(("marks", "given"), [(0, 1), (1, 0), (1, 2), (3, 2)])
def test_counts_that_disagree(folder: Path, marks: int, given: int) -> None:
    picture = Image.new("RGB", (9, 9))
    with load(folder) as engine, pytest.raises(ImageCountError, match=f"{marks} .*{given}"):
        engine.generate([BOS, *[IMAGE] * marks, 9], images=[picture] * given)


@pytest.mark.parametrize("images", [[], [Image.new("RGB", (9, 9))]])
def test_videos_are_refused(folder: Path, images: list[Image.Image]) -> None:
    with load(folder) as engine, pytest.raises(PromptError, match="videos are not supported"):
        engine.generate([BOS, *[IMAGE] * len(images), VIDEO, 9], images=images)


def test_a_picture_that_is_too_elongated(folder: Path) -> None:
    line = Image.new("RGB", (1, 201))
    with load(folder) as engine:
        with pytest.raises(ImageError, match="1x201"):
            engine.generate([BOS, IMAGE], images=[line])
        assert engine.generate([BOS, IMAGE], images=[line.crop((0, 0, 1, 200))]).result()


# --- the decoder ------------------------------------------------------------------------------


def test_quantized_kv_cache_keeps_the_positions(tmp_path: Path, seed: int) -> None:
    """8 bits are near, one axis is far; in several chunks, and in a second turn."""
    wide = {"num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 32, as groups are
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    reference = Qwen2VLReference(seed, **wide, rope_parameters=rope)
    written(reference, tmp_path)
    photo = Image.fromarray(skimage.data.astronaut()).resize((40, 30))
    prompt: list[Any] = [BOS, *WORDS[:9], photo, *WORDS[20:30]]
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0, "prefill_step_size": 11}
    with load(tmp_path) as engine:
        for _ in range(2):
            tokens, images = reference.expanded(prompt)
            marked = [p if isinstance(p, int) else IMAGE for p in prompt]
            answer, ours, _ = ask(engine, marked, images, **options)
            theirs = reference.logits(tokens, images, answer[:-1])[len(tokens) - 1 :]
            assert relative_error(ours, theirs - theirs.mean(-1, keepdims=True)) < 0.05
            prompt += [*answer, photo, *WORDS[30:35]]


def test_absent_fields_are_those_of_the_family(copy: Path) -> None:
    """Qwen2-VL's defaults are not Qwen2's; a report names what was assumed."""
    config = json.loads((copy / "config.json").read_text())
    for name in ("rms_norm_eps", "rope_parameters", "num_key_value_heads"):
        del config["text_config"][name]
    config["text_config"] |= {"hidden_size": 512, "num_attention_heads": 4}
    edit_config(copy, **config)
    read = read_config(copy)
    assert read.decoder["model_type"] == "qwen2"
    assert read.decoder["rms_norm_eps"] == 1e-5
    assert read.decoder["rope_theta"] == 1e6
    assert read.decoder["num_key_value_heads"] == 8
    assert "rms_norm_eps: 1e-05 (default of qwen2_vl_text)" in read.assumed


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"use_sliding_window": False, "sliding_window": 24, "max_window_layers": 1}, 512),
        ({"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 3}, 512),
        ({"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}, 24),
    ],
)
def test_context_ends_where_a_window_would_begin_to_count(
    copy: Path, fields: dict[str, Any], limit: int
) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"] |= {**fields, "layer_types": None}
    edit_config(copy, **config)
    assert load_model_kit(copy).max_context == limit


# --- limits and refusals ------------------------------------------------------------------------


def test_load_report_states_the_limits(folder: Path) -> None:
    report = inspect_checkpoint(folder)
    assert report.add_on == "vision_add_ons.qwen2_vl.add_on:Qwen2VLAddOn"
    assert any("512 to 4096 pixels in all: 8 to 64 rows" in line for line in report.lines())
    assert any("200 times" in line for line in report.lines())


REFUSED = [
    ("vision_config", "model_type", "qwen3_vl_vision", UnsupportedCheckpoint),
    ("vision_config", "hidden_act", "gelu", UnsupportedCheckpoint),
    ("vision_config", "in_channels", 1, UnsupportedCheckpoint),
    (
        "vision_config",
        "rope_parameters",
        {"rope_type": "linear", "factor": 2.0},
        UnsupportedCheckpoint,
    ),
    ("vision_config", "patch_size", 0, BrokenConfig),
    ("vision_config", "patch_size", [4, 4], BrokenConfig),
    ("vision_config", "patch_size", 8, UnsupportedCheckpoint),
    ("vision_config", "temporal_patch_size", 1, UnsupportedCheckpoint),
    ("vision_config", "spatial_merge_size", 4, UnsupportedCheckpoint),
    ("vision_config", "num_heads", 16, BrokenConfig),
    ("text_config", "rope_parameters", {"mrope_section": [2, 2, 2]}, BrokenConfig),
    ("text_config", "rope_parameters", {"mrope_section": [4, 4]}, BrokenConfig),
    (
        "text_config",
        "rope_parameters",
        {"rope_type": "dynamic", "factor": 2.0},
        UnsupportedCheckpoint,
    ),
    ("text_config", "hidden_act", "gelu", UnsupportedCheckpoint),
    ("text_config", "model_type", "qwen3", UnsupportedCheckpoint),
]
REFUSED_2 = [
    ("vision_config", "hidden_size", 32, BrokenConfig),
    ("vision_config", "embed_dim", 0, BrokenConfig),
]
REFUSED_2_5 = [
    ("vision_config", "out_hidden_size", 32, BrokenConfig),
    ("vision_config", "window_size", 7, BrokenConfig),
    ("vision_config", "window_size", 10**12, BrokenConfig),
    ("vision_config", "intermediate_size", 0, BrokenConfig),
]


@pytest.mark.parametrize(
    ("family", "where", "field", "value", "error"),
    [("folder", *case) for case in REFUSED + REFUSED_2]
    + [("newer", *case) for case in REFUSED + REFUSED_2_5],
)
def test_config_that_is_not_served(
    family: str,
    where: str,
    field: str,
    value: Any,
    error: type[Exception],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(request.getfixturevalue(family), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    if isinstance(value, dict):
        value = {**config[where][field], **value}
    config[where][field] = value
    edit_config(copy, **config)
    named = {"rope_parameters": "rope_type|mrope_section", "spatial_merge_size": "merge_size"}
    with pytest.raises(error, match=named.get(field, field)):
        load_model_kit(copy)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("patch_size", 14, UnsupportedCheckpoint),
        ("merge_size", 1, UnsupportedCheckpoint),
        ("temporal_patch_size", 1, UnsupportedCheckpoint),
        ("do_resize", False, UnsupportedCheckpoint),
        ("min_pixels", -1, BrokenConfig),
        ("min_pixels", 5000, BrokenConfig),
        ("max_pixels", 10**12, BrokenConfig),
        ("max_pixels", "many", BrokenConfig),
        ("size", {"height": 64, "width": 64}, BrokenConfig),
        ("size", 64, BrokenConfig),
    ],
)
def test_image_processor_that_is_not_served(
    copy: Path, field: str, value: Any, error: type[Exception]
) -> None:
    file = copy / "preprocessor_config.json"
    saved = {"patch_size": PATCH, "min_pixels": 512, "max_pixels": 4096}
    if field == "size":
        del saved["min_pixels"]
    file.write_text(json.dumps({**saved, field: value}))
    with pytest.raises(error, match=field if field != "size" else "size|min_pixels"):
        load_model_kit(copy)


def tensor(folder: Path, end: str) -> str:
    return next(name for name in read_weights(folder) if name.endswith(end))


def test_wrong_weights(copy: Path) -> None:
    name = tensor(copy, "visual.blocks.1.mlp.fc1.weight")
    kernel = tensor(copy, "patch_embed.proj.weight")
    changes: list[tuple[Any, type[Exception], str]] = [
        (lambda t: t.update({name: t[name][:, :-1].clone()}), UnexpectedShape, "fc1.weight"),
        (
            lambda t: t.update({kernel: t[kernel][..., :-1].clone()}),
            UnexpectedShape,
            "patch_embed.proj",
        ),
        (lambda t: t.update({f"{name}.more": t[name].clone()}), UnexpectedWeight, "more"),
        (lambda t: t.update({"audio.more": t[name].clone()}), UnexpectedWeight, "audio"),
        (lambda t: t.pop(kernel), MissingWeight, "visual.patch_embed.proj.weight"),
        (
            lambda t: [t.pop(n) for n in list(t) if n.startswith("visual.")],
            MissingWeight,
            "visual.blocks",
        ),
    ]
    original = (copy / "model.safetensors").read_bytes()
    for change, error, match in changes:
        edit_weights(copy, change)
        with pytest.raises(error, match=match):
            load_model_kit(copy)
        (copy / "model.safetensors").write_bytes(original)


def test_max_image_size_is_honoured(folder: Path) -> None:
    add_on = load_model_kit(folder).add_on
    assert add_on is not None
    picture = load_picture(Image.new("RGB", (60, 45)))
    assert add_on.row_count(picture) == 7 * 6 + 6
    assert add_on.row_count(picture.within(30)) < add_on.row_count(picture)
