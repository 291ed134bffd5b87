"""Conversions: native names to published ones, and other precisions."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support import moxin_checkpoint as moxin
from support.seeds import SWEEP
from support.seeing_checkpoints import FORMS, ONE_FORM_EACH, prompt_logits

from engine import BrokenWeights, OptionError, UnsupportedCheckpoint
from model_kit import convert, load_model_kit, quantize
from vision_add_ons.weights import read_weights


@pytest.mark.parametrize("form", ["moxin native", "moxin numbered", "moxin hf"])
def test_names(form: str, tmp_path: Path, seed: int) -> None:
    source, target = FORMS[form](tmp_path / "source", seed), tmp_path / "target"
    convert(source, target)
    expected = moxin.random_parts(seed).named(moxin.HF)
    weights = read_weights(target)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(np.array(weights[name]), tensor)
    ours, before = (prompt_logits(load_model_kit(f), seed) for f in (target, source))
    np.testing.assert_array_equal(ours, before)


def test_a_native_config(tmp_path: Path, seed: int) -> None:
    """Without a model type; what is assumed of it stands in the new one."""
    source, target = FORMS["moxin native"](tmp_path / "source", seed), tmp_path / "target"
    config = json.loads((source / "config.json").read_text())
    del config["model_type"], config["text_config"]["rms_norm_eps"]
    (source / "config.json").write_text(json.dumps(config))
    assert len(load_model_kit(source).report.assumed) > len(
        load_model_kit(_made(source, target)).report.assumed
    )
    written = json.loads((target / "config.json").read_text())
    assert written["model_type"] == "prismatic"
    assert written["text_config"]["rms_norm_eps"] == 1e-5


def _made(source: Path, target: Path) -> Path:
    convert(source, target)
    return target


PRECISIONS = ("bfloat16", "float16", "float32")
EACH = [(form, PRECISIONS[i % 3]) for i, form in enumerate(ONE_FORM_EACH)]
ALL = [(form, precision) for form in ONE_FORM_EACH for precision in PRECISIONS]


@pytest.mark.parametrize(("form", "dtype"), ALL if SWEEP else EACH)
def test_precision(form: str, dtype: str, tmp_path: Path, seed: int) -> None:
    source, target = FORMS[form](tmp_path / "source", seed), tmp_path / "target"
    convert(source, target, dtype=dtype)
    before, after = read_weights(source), read_weights(target)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == getattr(mx, dtype)
        assert mx.array_equal(after[name], tensor.astype(getattr(mx, dtype))).item()
    config = json.loads((target / "config.json").read_text())
    told = [
        half.get(n)
        for half in (config, config.get("text_config", {}))
        for n in ("dtype", "torch_dtype")
    ]
    assert set(told) <= {None, dtype}
    exact, cast = (prompt_logits(load_model_kit(f), seed) for f in (source, target))
    error = np.linalg.norm(cast - exact) / np.linalg.norm(exact)
    assert error <= {"float32": 0, "float16": 0.02, "bfloat16": 0.15}[dtype]


def test_what_cannot_be_converted(few_words_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="dtype"):
        convert(few_words_folder, tmp_path / "target", dtype="int8")
    quantize(few_words_folder, tmp_path / "quantized", bits=8)
    with pytest.raises(UnsupportedCheckpoint, match="quantized"):
        convert(tmp_path / "quantized", tmp_path / "target", dtype="float16")
    convert(tmp_path / "quantized", tmp_path / "copy")
    a, b = (read_weights(tmp_path / name) for name in ("quantized", "copy"))
    assert all(mx.array_equal(a[name], b[name]).item() for name in a)


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    source = FORMS["moxin hf"](tmp_path / "source", 1)
    tensors = read_weights(source)
    tensors["projector.projector.0.weight"] = tensors["projector.fc1.weight"] + 1
    mx.save_safetensors(str(source / "model.safetensors"), tensors, {"format": "pt"})
    with pytest.raises(BrokenWeights, match="two names"):
        convert(source, tmp_path / "target")
