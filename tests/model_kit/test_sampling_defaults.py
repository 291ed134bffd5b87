"""What a checkpoint's generation_config.json asks for, as transformers reads it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from engine import GenerationOptions
from engine.options import BOUNDS as OPTIONS
from model_kit import inspect_checkpoint, load_model_kit
from model_kit.sampling_defaults import BOUNDS, sampling_defaults

PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma 3": {"do_sample": True, "top_k": 64, "top_p": 0.95},
    "qwen 2.5 vl": {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-06},
    "qwen 3 vl": {
        "do_sample": True,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
    },
    "lfm 2": {"do_sample": True, "temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05},
    "no more than that it draws": {"do_sample": True},
    "none": {"eos_token_id": 2},
    "greedy in so many words": {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    "greedy, and penalized": {"do_sample": False, "repetition_penalty": 1.1},
    "left out by null": {"do_sample": True, "temperature": None, "top_k": None, "top_p": None},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_mean_what_they_mean_to_transformers(name: str) -> None:
    config = GenerationConfig(**PUBLISHED[name])
    config.update(**config._get_default_generation_params(), defaults_only=True)
    read = sampling_defaults(PUBLISHED[name])
    assert not read.ignored
    values: dict[str, float] = {"repetition_penalty": 1.0, "temperature": 0.0} | read.values
    assert values["repetition_penalty"] == config.repetition_penalty
    if not config.do_sample:
        assert values["temperature"] == 0
        assert not read.assumed
        return
    assert values["temperature"] == config.temperature
    assert values["top_k"] == config.top_k
    assert values.get("top_p", 1.0) == config.top_p
    assert values.get("min_p") == config.min_p


def test_a_temperature_alone_draws() -> None:
    """There transformers ignores it; whoever wrote it did not mean that."""
    read = sampling_defaults({"temperature": 0.15})
    assert read.values == {"temperature": 0.15, "top_k": 50}
    assert [line.split(":")[0] for line in read.assumed] == ["do_sample", "top_k"]
    assert sampling_defaults({"temperature": 0.0}).values["temperature"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 10**400},
        {"temperature": [0.7]},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": {}},
        {"top_k": -2},
        {"top_k": 2.5},
        {"top_k": 2**31},
        {"top_k": False},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"do_sample": "yes"},
        {"do_sample": 1},
        {"temperature": "\ud800" * 10_000},
    ],
)
def test_odd_values_are_told_and_change_nothing(wrong: dict[str, Any]) -> None:
    read = sampling_defaults(wrong)
    (name,) = wrong
    (line,) = read.ignored
    assert name in line
    assert len(line) < 120
    assert not read.values
    # Nor do they take anything else with them.
    others = {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1}
    if name != "do_sample":
        others.pop(name, None)
        assert (
            sampling_defaults({**others, **wrong}).values.items()
            >= {k: v for k, v in others.items() if k != "do_sample"}.items()
        )


def test_other_words_for_all_tokens() -> None:
    for top_k in (-1, 0, 0.0, -1.0):
        assert sampling_defaults({"do_sample": True, "top_k": top_k}).values["top_k"] == 0
    assert sampling_defaults({"do_sample": True, "top_k": 40.0}).values["top_k"] == 40


odd: list[Any] = [None, True, False, "0.5", [], [0.5], {}]
json_values = st.integers() | st.floats() | st.floats(-2, 2) | st.sampled_from(odd)


@given(st.dictionaries(st.sampled_from([*BOUNDS, "do_sample", "eos_token_id"]), json_values))
def test_whatever_stands_there_becomes_options(config: dict[str, Any]) -> None:
    options: Any = sampling_defaults(config).values
    GenerationOptions(**options)


def test_what_is_heeded_is_what_the_engine_takes() -> None:
    for name, (low, high) in BOUNDS.items():
        lowest, highest = OPTIONS[name]
        assert lowest <= low, name
        assert high == highest, name


def test_inspect_tells_them(few_words_folder: Path, tmp_path: Path) -> None:
    for file in few_words_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert (
        "sampling:      temperature 0 (the likeliest token)" in inspect_checkpoint(tmp_path).lines()
    )
    file = tmp_path / "generation_config.json"
    file.unlink(missing_ok=True)
    file.write_text(json.dumps({"do_sample": True, "temperature": 0.7, "top_p": 7}))
    report = inspect_checkpoint(tmp_path)
    assert "sampling:      temperature 0.7, top_k 50" in report.lines()
    assert "top_k: 50 (default of transformers)" in report.assumed
    assert "generation_config.json's top_p 7 is ignored" in report.notes
    assert load_model_kit(tmp_path, vocab_only=True).report.sampling == report.sampling
