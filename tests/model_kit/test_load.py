"""Checkpoints in every dialect against transformers, and what loading tells of them."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file
from support import tiny
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine import BrokenWeights
from model_kit import inspect_checkpoint, load_model_kit
from model_kit.decoder import read_into_memory
from model_kit.kit import ModelKit, open_model_kit
from vision_add_ons.testing import VOCAB


def relative_error(kit: ModelKit, model: Any, tokens: list[int]) -> float:
    assert kit.text_model is not None
    ours = np.array(kit.text_model(mx.array([tokens]))[0, -1].astype(mx.float32))
    theirs = tiny.last_logits(model, tokens)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def some_tokens(seed: int, count: int = 40) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


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
def test_rope_parameters_are_never_lost(rope: str, dialect: int, tmp_path: Path, seed: int) -> None:
    model = tiny.of_few_words(seed, "llama", rope_parameters=ROPES[rope])
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
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
    family: str, tied: bool, tmp_path: Path, seed: int
) -> None:
    """`tie_word_embeddings` is False there and True in mlx-lm; the report says what was taken."""
    model = tiny.of_few_words(seed, family, tie_word_embeddings=tied)
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
    if not tied:
        tiny.edit_config(folder, ("tie_word_embeddings",))
    kit = load_model_kit(folder)
    assert relative_error(kit, model, some_tokens(seed)) <= 2e-5
    assumed = any(line.startswith("tie_word_embeddings: False") for line in kit.report.assumed)
    assert assumed != tied


@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_a_head_of_its_own_counts_whatever_the_config_says(
    family: str, tmp_path: Path, seed: int
) -> None:
    """transformers unties the two then; mlx-lm would drop the head silently."""
    model = tiny.of_few_words(seed, family, tie_word_embeddings=False)
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
    tiny.edit_config(folder, tie_word_embeddings=True)
    assert relative_error(load_model_kit(folder), model, some_tokens(seed)) <= 2e-5


def test_shards_and_one_file_are_the_same(tmp_path: Path, seed: int) -> None:
    model = tiny.of_few_words(seed)
    whole = load_model_kit(tiny.save_of_few_words(model, tmp_path / "whole"))
    folder = tiny.save_of_few_words(model, tmp_path / "shards", max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    shards = load_model_kit(folder)
    assert relative_error(shards, model, some_tokens(seed)) <= 2e-5
    a, b = (dict(tree_flatten(k.text_model.parameters())) for k in (whole, shards))
    assert all(mx.array_equal(a[name], b[name]) for name in a)


def test_the_index_decides_which_files_count(tmp_path: Path, seed: int) -> None:
    model = tiny.of_few_words(seed)
    folder = tiny.save_of_few_words(model, tmp_path / "shards [of 4]", max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    for file in sorted(folder.glob("model-*.safetensors")):
        stale = {name: w * 0 + 1 for name, w in load_file(file).items()}
        save_file(stale, folder / f"model-old-{file.name}", metadata={"format": "pt"})
        file.rename(folder / file.name.replace("model-", "part-"))
    index.write_text(text.replace('"model-', '"part-'))
    assert relative_error(load_model_kit(folder), model, some_tokens(seed)) <= 2e-5


@pytest.mark.parametrize("per_layer", [False, True])
def test_quantized_decoder(per_layer: bool, tmp_path: Path, seed: int) -> None:
    """Quantized by mlx, against transformers on the dequantized weights."""
    import torch

    model = tiny.of_few_words(seed)
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
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


def test_end_of_text_ids_of_all_sources(tmp_path: Path, seed: int) -> None:
    folder = tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "tiny")
    tiny.edit_config(folder, eos_token_id=[5, 6])
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert load_model_kit(folder, vocab_only=True).tokenizer.eos_token_ids == {2, 5, 6, 7}


def test_sliding_window_limits_the_context(tmp_path: Path, seed: int) -> None:
    """mlx-lm's Qwen2 applies no sliding window: exact within it, so that is the limit."""
    sizes = {**tiny.SIZES, "vocab_size": VOCAB, "use_sliding_window": True, "max_window_layers": 0}
    config = Qwen2Config(**{**sizes, "sliding_window": 32}, attn_implementation="eager")
    model = tiny.randomize(Qwen2ForCausalLM(config), seed)
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
    kit = load_model_kit(folder)
    assert kit.max_context == kit.report.max_context == 32
    assert any("limited to 32 tokens" in note for note in kit.report.notes)
    assert relative_error(kit, model, some_tokens(seed, 32)) <= 2e-5
    assert relative_error(kit, model, some_tokens(seed, 48)) > 1e-3


def test_inspect_tells_what_loading_does(tmp_path: Path, seed: int) -> None:
    folder = tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "tiny")
    report = inspect_checkpoint(folder)
    assert report.lines() == load_model_kit(folder).report.lines()
    tensors = load_file(folder / "model.safetensors")
    assert report.decoder_bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert report.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4
    text = "\n".join(report.lines())
    for fact in ("mistral", "3 layers", "64 wide", "float32", "512 tokens", "GiB needed"):
        assert fact in text


def test_progress_reaches_the_total(tmp_path: Path, seed: int) -> None:
    folder = tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "tiny")
    calls: list[tuple[str, int, int]] = []
    kit = load_model_kit(folder, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("load decoder", kit.report.decoder_bytes, kit.report.decoder_bytes)
    assert [c[1] for c in calls] == sorted(c[1] for c in calls)


def test_vocab_only_reads_no_weights(tmp_path: Path, seed: int) -> None:
    folder = tiny.save_of_few_words(tiny.of_few_words(seed), tmp_path / "tiny")
    kit = load_model_kit(folder, vocab_only=True)
    assert kit.text_model is None
    assert kit.tokenizer.encode("Hello")


def test_the_text_half_of_an_unknown_vision_model(tmp_path: Path, seed: int) -> None:
    """Served when asked for, by the language model's own type."""
    model = tiny.of_few_words(seed)
    folder = tiny.save_of_few_words(model, tmp_path / "tiny")
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


def test_a_file_that_shrinks_while_it_is_read(few_words_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(few_words_folder, source)

    kit = open_model_kit(source)
    os.truncate(source / "model.safetensors", 2000)
    assert kit.text_model is not None
    with pytest.raises(BrokenWeights, match="cannot be read on"):
        read_into_memory(kit.text_model, "load decoder", None)


def test_which_answers_are_made_at_once_is_told(
    tmp_path: Path, letters_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tiny.save_of_letters(3, tmp_path / "wide", head_dim=64)
    assert inspect_checkpoint(wide).at_once == (
        "several answers (parallel=N); one by one those with kv_bits"
    )

    class Unheard:
        """A cache that mlx-lm has no batch of."""

    monkeypatch.setattr(ModelKit, "make_cache", lambda self: [Unheard()])
    report = inspect_checkpoint(letters_folder)
    assert report.at_once == "one answer: Unheard cannot be merged"
    assert "at once:       one answer: Unheard cannot be merged" in report.lines()
