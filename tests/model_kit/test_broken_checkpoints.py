"""Every way in which a checkpoint is broken, and the typed error that says so."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.seeds import SWEEP, seed_of

from model_kit import inspect_checkpoint, load_model_kit
from vision_add_ons import errors
from vision_add_ons.testing import VOCAB

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 800.0,
}


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: tiny.edit_config(folder, **changes)


def _without(*names: str) -> Callable[[Path], None]:
    return lambda folder: tiny.edit_config(folder, names)


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: tiny.edit_weights(folder, change)


def _truncate(share: float) -> Callable[[Path], None]:
    def truncate(folder: Path) -> None:
        file = folder / "model.safetensors"
        with file.open("r+b") as f:
            f.truncate(int(file.stat().st_size * share))

    return truncate


def _index(weight_map: Any) -> Callable[[Path], None]:
    return _text("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


NORM = "model.norm.weight"
BROKEN = {
    "no config": (_unlink("config.json"), errors.CheckpointNotFound, "no config.json"),
    "no weights": (_unlink("model.safetensors"), errors.WeightsNotFound, "no model.safetensors"),
    "config is no JSON": (_text("config.json", "{"), errors.BrokenConfig, "config.json"),
    "config is a list": (_text("config.json", "[]"), errors.BrokenConfig, "JSON object"),
    "config is binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00") and None,
        errors.BrokenConfig,
        "config.json",
    ),
    "config nests too deep": (
        _text("config.json", "[" * 100_000),
        errors.BrokenConfig,
        "config.json",
    ),
    "generation config is no JSON": (
        _text("generation_config.json", "x"),
        errors.BrokenConfig,
        "generation_config.json",
    ),
    "no model type": (_without("model_type"), errors.UnknownModelType, "no model_type"),
    "model type is a number": (_config(model_type=7), errors.BrokenConfig, "model_type"),
    "unknown model type": (
        _config(model_type="mistrall"),
        errors.UnknownModelType,
        "did you mean mistral.*prismatic.*llama",
    ),
    "module of no model": (_config(model_type="cache"), errors.UnknownModelType, "cache"),
    "vision model without add-on": (
        _config(vision_config={}, text_config={}, model_type="kosmos"),
        errors.UnsupportedCheckpoint,
        "no vision add-on.*decoder_only",
    ),
    "hidden size is a text": (_config(hidden_size="x"), errors.BrokenConfig, "hidden_size"),
    "hidden size is zero": (
        _config(hidden_size=0),
        errors.CheckpointError,
        "hidden_size|built|shape",
    ),
    "no heads": (_config(num_attention_heads=0), errors.CheckpointError, "head|built|shape"),
    "other hidden size": (_config(hidden_size=128), errors.UnexpectedShape, rf"\({VOCAB}, 64\)"),
    "more layers": (
        _config(num_hidden_layers=4),
        errors.MissingWeight,
        r"model.layers.3.input_layernorm.weight and \d+ more",
    ),
    "fewer layers": (_config(num_hidden_layers=2), errors.UnexpectedWeight, "model.layers.2"),
    "unknown rope": (
        _config(rope_parameters={"rope_type": "spiral", "rope_theta": 1.0}),
        errors.UnsupportedCheckpoint,
        "spiral",
    ),
    "yarn with an attention factor": (
        _config(rope_parameters={**YARN, "attention_factor": 2.0}),
        errors.UnsupportedCheckpoint,
        "attention_factor",
    ),
    "rope theta of zero": (
        _config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
        errors.CheckpointError,
        "rope_theta",
    ),
    "yarn with half of its scales": (
        _config(rope_parameters={**YARN, "mscale": 0.7}),
        errors.UnsupportedCheckpoint,
        "mscale",
    ),
    "another activation": (
        _config(hidden_act="gelu"),
        errors.UnsupportedCheckpoint,
        "hidden_act 'gelu'",
    ),
    "a decoder that lacks its package": (
        _config(model_type="olmo"),
        errors.UnsupportedCheckpoint,
        "olmo",
    ),
    "no positions at all": (
        _config(max_position_embeddings=0),
        errors.CheckpointError,
        "max_position_embeddings",
    ),
    "a weight of whole numbers": (
        _weights(lambda w: w.update({NORM: w[NORM].int()})),
        errors.UnexpectedDtype,
        "model.norm.weight holds .*int32",
    ),
    "the same weights twice": (
        lambda f: shutil.copy(f / "model.safetensors", f / "model-2.safetensors") and None,
        errors.BrokenWeights,
        "more than one file",
    ),
    "quantization without bits": (
        _config(quantization={"group_size": 64}),
        errors.BrokenConfig,
        "bits",
    ),
    "eos is a text": (_config(eos_token_id="</s>"), errors.CheckpointError, "eos_token_id"),
    "a weight is missing": (_weights(lambda w: w.pop(NORM)), errors.MissingWeight, NORM),
    "a weight has another shape": (
        _weights(lambda w: w.update({NORM: w[NORM][:9].clone()})),
        errors.UnexpectedShape,
        r"model.norm.weight has shape \(9,\)",
    ),
    "a weight too many": (
        _weights(lambda w: w.update({"extra.weight": w[NORM].clone()})),
        errors.UnexpectedWeight,
        "extra.weight",
    ),
    "weights cut in the data": (_truncate(0.5), errors.BrokenWeights, "model.safetensors"),
    "weights cut in the header": (_truncate(0.0001), errors.BrokenWeights, "model.safetensors"),
    "weights are empty": (_truncate(0), errors.BrokenWeights, "model.safetensors"),
    "weights are text": (_text("model.safetensors", "hi" * 99), errors.BrokenWeights, "model"),
    "index is no JSON": (
        _text("model.safetensors.index.json", "{"),
        errors.BrokenIndex,
        "index.json",
    ),
    "index without a map": (
        _text("model.safetensors.index.json", "{}"),
        errors.BrokenIndex,
        "index.json",
    ),
    "index names nothing": (_index({}), errors.BrokenIndex, "names no file"),
    "index names an absent shard": (
        _index({NORM: "model-00001-of-00002.safetensors"}),
        errors.BrokenIndex,
        "model-00001-of-00002.safetensors",
    ),
    "index lists an absent tensor": (
        _index({"absent.weight": "model.safetensors"}),
        errors.BrokenIndex,
        "absent.weight",
    ),
    "index nests too deep": (
        _text("model.safetensors.index.json", "[" * 100_000),
        errors.BrokenIndex,
        "index.json",
    ),
    "generation config is a folder": (
        lambda f: (f / "generation_config.json").unlink() or (f / "generation_config.json").mkdir(),
        errors.BrokenConfig,
        "generation_config.json",
    ),
    "quantization of another kind": (
        _config(quantization_config=True),
        errors.BrokenConfig,
        "config.json",
    ),
    "tokenizer that fails when used": (
        _text("tokenizer_config.json", '{"model_max_length": {}}'),
        errors.BrokenTokenizer,
        "tokenizer",
    ),
    "index points outside": (
        _index({NORM: "../model.safetensors"}),
        errors.BrokenIndex,
        "not a file of this folder",
    ),
    "index names a number": (_index({NORM: 3}), errors.BrokenIndex, "3"),
    "tokenizer is no JSON": (
        _text("tokenizer.json", "{"),
        errors.BrokenTokenizer,
        "tokenizer",
    ),
    "no tokenizer": (_unlink("tokenizer.json"), errors.BrokenTokenizer, "tokenizer.json"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.of_few_words(seed_of("broken checkpoints"))
    return tiny.save_of_few_words(model, tmp_path_factory.mktemp("sound") / "tiny")


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_named(fault: str, sound: Path, tmp_path: Path) -> None:
    breaking, error, message = BROKEN[fault]
    folder = shutil.copytree(sound, tmp_path / "broken")
    breaking(folder)
    with pytest.raises(error, match=message) as caught:
        load_model_kit(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(error):
        inspect_checkpoint(folder)


JUNK: list[Any] = [None, True, 0, -1, 3, 10**12, 1.5, "x", "", [], [1], {}, {"a": 1}, [[]]]


def test_junk_in_any_field(sound: Path, tmp_path: Path, seed: int) -> None:
    """A config either loads or is refused with a typed error, whatever stands in it."""
    rng = random.Random(seed)
    folder = shutil.copytree(sound, tmp_path / "junk")
    config = json.loads((folder / "config.json").read_text())
    fields = [*config, "quantization", "quantization_config", "rope_scaling", "text_config"]
    fields += ["vision_config", "eos_token_id", "rope_theta", "layer_types", "head_dim"]
    refused = 0
    for _ in range(150 if SWEEP else 60):
        name, value = rng.choice(fields), rng.choice(JUNK)
        tiny.write_config(folder, {**config, name: value})
        try:
            inspect_checkpoint(folder)
        except errors.CheckpointError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}={value!r}") from error
    assert refused > 12


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointNotFound, match="absent"):
        load_model_kit(tmp_path / "absent")
