"""Qwen2-VL where it differs from other families: videos, M-RoPE, and a decoder that is a Qwen2.

What every family holds is checked in tests/parity.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image
from support.qwen2_vl_reference import IMAGE, VIDEO, Qwen2VLReference
from support.tiny import edit_config

from engine import GenerationOptions, load
from engine.images import load_picture
from model_kit.config import read_config
from model_kit.kit import inspect_checkpoint, load_model_kit
from vision_add_ons.errors import ImageError, PromptError
from vision_add_ons.testing import BOS, WORDS, relative_error, written
from vision_add_ons.testing.kit import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Qwen2VLReference(1), tmp_path_factory.mktemp("qwen2_vl"))


@pytest.mark.parametrize("images", [[], [Image.new("RGB", (9, 9))]])
def test_videos_are_refused(folder: Path, images: list[Image.Image]) -> None:
    with load(folder) as engine, pytest.raises(PromptError, match="videos are not supported"):
        engine.generate([BOS, *[IMAGE] * len(images), VIDEO, 9], images=images)


def test_a_picture_that_is_too_elongated(folder: Path) -> None:
    line = Image.new("RGB", (1, 201))
    with load(folder) as engine:
        with pytest.raises(ImageError, match="1x201"):
            engine.generate([BOS, IMAGE], images=[line])
        one = GenerationOptions(max_tokens=1)
        shorter = line.crop((0, 0, 1, 200))
        assert engine.generate([BOS, IMAGE], images=[shorter], options=one).result().tokens


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
            answer, ours, _ = ask(engine, prompt, reference, **options)
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


def test_max_image_size_is_honoured(folder: Path) -> None:
    add_on = load_model_kit(folder).add_on
    assert add_on is not None
    picture = load_picture(Image.new("RGB", (60, 45)))
    assert add_on.row_count(picture) == 7 * 6 + 6
    assert add_on.row_count(picture.within(30)) < add_on.row_count(picture)
