"""Checkpoints in every dialect against transformers, and every way in which they are broken."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

from model_kit import inspect_checkpoint, load_model_kit
from model_kit.kit import ModelKit
from vision_add_ons import errors


def relative_error(kit: ModelKit, model: Any, tokens: list[int]) -> float:
    assert kit.text_model is not None
    ours = np.array(kit.text_model(mx.array([tokens]))[0, -1].astype(mx.float32))
    theirs = tiny.last_logits(model, tokens)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def some_tokens(seed: int, count: int = 40) -> list[int]:
    return random.Random(seed).choices(range(49152), k=count)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 700.0},
    "llama3": {**LLAMA3, "rope_theta": 900.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 800.0,
    },
}


@pytest.mark.parametrize("dialect", [4, 5])
@pytest.mark.parametrize("rope", ROPES)
def test_rope_parameters_are_never_lost(
    rope: str, dialect: int, tmp_path: Path, seed: int, demo: Path
) -> None:
    model = tiny.text_model(seed, "llama", rope_parameters=ROPES[rope])
    folder = tiny.save(model, tmp_path / "tiny", demo)
    if dialect == 4:
        scaling = {k: v for k, v in ROPES[rope].items() if k != "rope_theta"}
        scaling = None if rope == "theta" else scaling
        theta = ROPES[rope]["rope_theta"]
        tiny.edit_config(folder, ("rope_parameters",), rope_theta=theta, rope_scaling=scaling)
    kit = load_model_kit(folder)
    error = relative_error(kit, model, some_tokens(seed))
    print(f"{rope} in dialect {dialect}: relative error {error:.1e}")
    assert error <= 2e-5
    # The parameters matter on these weights: without them the logits are others.
    tiny.edit_config(folder, ("rope_parameters", "rope_theta", "rope_scaling"))
    assert relative_error(load_model_kit(folder), model, some_tokens(seed)) > 1e-3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_absent_fields_have_transformers_defaults(
    family: str, tied: bool, tmp_path: Path, seed: int, demo: Path
) -> None:
    """`tie_word_embeddings` is False there and True in mlx-lm; the report says what was taken."""
    model = tiny.text_model(seed, family, tie_word_embeddings=tied)
    folder = tiny.save(model, tmp_path / "tiny", demo)
    if not tied:
        tiny.edit_config(folder, ("tie_word_embeddings",))
    kit = load_model_kit(folder)
    assert relative_error(kit, model, some_tokens(seed)) <= 2e-5
    assumed = any(line.startswith("tie_word_embeddings: False") for line in kit.report.assumed)
    assert assumed != tied


def test_shards_and_one_file_are_the_same(tmp_path: Path, seed: int, demo: Path) -> None:
    model = tiny.text_model(seed)
    whole = load_model_kit(tiny.save(model, tmp_path / "whole", demo))
    folder = tiny.save(model, tmp_path / "shards", demo, max_shard_size="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    shards = load_model_kit(folder)
    assert relative_error(shards, model, some_tokens(seed)) <= 2e-5
    a, b = (dict(tree_flatten(k.text_model.parameters())) for k in (whole, shards))
    assert all(mx.array_equal(a[name], b[name]) for name in a)


def test_the_index_decides_which_files_count(tmp_path: Path, seed: int, demo: Path) -> None:
    model = tiny.text_model(seed)
    folder = tiny.save(model, tmp_path / "shards [of 4]", demo, max_shard_size="2MB")
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    for file in sorted(folder.glob("model-*.safetensors")):
        stale = {name: w * 0 + 1 for name, w in load_file(file).items()}
        save_file(stale, folder / f"model-old-{file.name}", metadata={"format": "pt"})
        file.rename(folder / file.name.replace("model-", "part-"))
    index.write_text(text.replace('"model-', '"part-'))
    assert relative_error(load_model_kit(folder), model, some_tokens(seed)) <= 2e-5


@pytest.mark.parametrize("per_layer", [False, True])
def test_quantized_decoder(per_layer: bool, tmp_path: Path, seed: int, demo: Path) -> None:
    """Quantized by mlx, against transformers on the dequantized weights."""
    import torch

    model = tiny.text_model(seed)
    folder = tiny.save(model, tmp_path / "tiny", demo)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    saved: dict[str, mx.array] = {}
    quantization: dict[str, Any] = {"group_size": 32, "bits": 4}
    with torch.no_grad():
        for name, w in weights.items():
            if "proj" not in name:
                saved[name] = w
                continue
            bits = 8 if per_layer and ".0." in name else 4
            if bits == 8:
                quantization[name.removesuffix(".weight")] = {"group_size": 32, "bits": 8}
            q = mx.quantize(w, group_size=32, bits=bits)
            base = name.removesuffix(".weight")
            saved[name], saved[f"{base}.scales"], saved[f"{base}.biases"] = q
            whole = mx.dequantize(*q, group_size=32, bits=bits)
            model.get_parameter(name).copy_(torch.from_numpy(np.array(whole)))
    mx.save_safetensors(str(folder / "model.safetensors"), saved)
    tiny.edit_config(folder, quantization=quantization)
    kit = load_model_kit(folder)
    assert isinstance(kit.text_model.model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    assert relative_error(kit, model, some_tokens(seed)) <= 2e-5
    assert "4 bits, groups of 32" in "\n".join(kit.report.lines())


def test_end_of_text_ids_of_all_sources(tmp_path: Path, seed: int, demo: Path) -> None:
    folder = tiny.save(tiny.text_model(seed), tmp_path / "tiny", demo)
    tiny.edit_config(folder, eos_token_id=[5, 6])
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert load_model_kit(folder, vocab_only=True).tokenizer.eos_token_ids == {2, 5, 6, 7}


def test_sliding_window_limits_the_context(tmp_path: Path, seed: int, demo: Path) -> None:
    """mlx-lm's Mistral applies no sliding window: exact within it, so that is the limit."""
    model = tiny.text_model(seed, sliding_window=32)
    folder = tiny.save(model, tmp_path / "tiny", demo)
    kit = load_model_kit(folder)
    assert kit.max_context == kit.report.max_context == 32
    assert any("limited to 32 tokens" in note for note in kit.report.notes)
    assert relative_error(kit, model, some_tokens(seed, 32)) <= 2e-5
    assert relative_error(kit, model, some_tokens(seed, 48)) > 1e-3


def test_inspect_tells_what_loading_does(tmp_path: Path, seed: int, demo: Path) -> None:
    folder = tiny.save(tiny.text_model(seed), tmp_path / "tiny", demo)
    report = inspect_checkpoint(folder)
    assert report.lines() == load_model_kit(folder).report.lines()
    tensors = load_file(folder / "model.safetensors")
    assert report.decoder_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert report.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4
    text = "\n".join(report.lines())
    for fact in ("mistral", "3 layers", "64 wide", "float32", "512 tokens", "GiB needed"):
        assert fact in text


def test_progress_reaches_the_total(tmp_path: Path, seed: int, demo: Path) -> None:
    folder = tiny.save(tiny.text_model(seed), tmp_path / "tiny", demo)
    calls: list[tuple[str, int, int]] = []
    kit = load_model_kit(folder, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("load decoder", kit.report.decoder_bytes, kit.report.decoder_bytes)
    assert [c[1] for c in calls] == sorted(c[1] for c in calls)


def test_vocab_only_reads_no_weights(tmp_path: Path, seed: int, demo: Path) -> None:
    folder = tiny.save(tiny.text_model(seed), tmp_path / "tiny", demo)
    kit = load_model_kit(folder, vocab_only=True)
    assert kit.text_model is None
    assert kit.tokenizer.encode("Hello")


# --- what is broken, and the error that says so -----------------------------------------------


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
        _config(vision_config={}, model_type="kosmos"),
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
    "other hidden size": (_config(hidden_size=128), errors.UnexpectedShape, r"\(49152, 64\)"),
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
        _config(rope_parameters={**ROPES["yarn"], "attention_factor": 2.0}),
        errors.UnsupportedCheckpoint,
        "attention_factor",
    ),
    "rope theta of zero": (
        _config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
        errors.CheckpointError,
        "rope_theta",
    ),
    "yarn with half of its scales": (
        _config(rope_parameters={**ROPES["yarn"], "mscale": 0.7}),
        errors.UnsupportedCheckpoint,
        "mscale",
    ),
    "another activation": (
        _config(hidden_act="gelu"),
        errors.UnsupportedCheckpoint,
        "hidden_act 'gelu'",
    ),
    "a decoder that is not exact yet": (
        _config(model_type="gemma"),
        errors.UnsupportedCheckpoint,
        "gemma is not exact",
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
def sound(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Path:
    model = tiny.text_model(random.SystemRandom().randrange(2**31))
    return tiny.save(model, tmp_path_factory.mktemp("sound") / "tiny", demo)


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
    for _ in range(150):
        name, value = rng.choice(fields), rng.choice(JUNK)
        tiny.write_config(folder, {**config, name: value})
        try:
            inspect_checkpoint(folder)
        except errors.CheckpointError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}={value!r}") from error
    assert refused > 30


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointNotFound, match="absent"):
        load_model_kit(tmp_path / "absent")


def test_the_text_half_of_an_unknown_vision_model(tmp_path: Path, seed: int, demo: Path) -> None:
    """Served when asked for, by the language model's own type."""
    model = tiny.text_model(seed)
    folder = tiny.save(model, tmp_path / "tiny", demo)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "kosmos", "vision_config": {}, "text_config": config})
    )

    def rename(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[f"language_model.{name}"] = tensors.pop(name)
        tensors["vision_tower.weight"] = tensors["language_model.model.norm.weight"].clone()

    tiny.edit_weights(folder, rename)
    kit = load_model_kit(folder, decoder_only=True)
    assert relative_error(kit, model, some_tokens(seed)) <= 2e-5
