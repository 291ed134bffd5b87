"""Quantized folders: as mlx-lm quantizes, exact after a reload, and loadable by mlx-lm alone."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import load_model
from safetensors.numpy import load_file
from support import tiny
from support.gemma3_reference import ROWS
from support.seeds import SWEEP, seed_of
from support.seeing_checkpoints import FORMS, ONE_FORM_EACH, prompt_logits

from engine import OptionError, UnsupportedCheckpoint
from model_kit import load_model_kit, quantize
from model_kit.kit import ModelKit
from model_kit.names import decoder_name
from vision_add_ons.testing import VOCAB
from vision_add_ons.weights import read_weights

GROUP = 32


def in_memory(kit: ModelKit, bits: int, towers_bits: int | None, embeddings: bool) -> ModelKit:
    """A model that was loaded, quantized by mlx where it is."""
    assert kit.text_model is not None

    def fits(_: str, layer: nn.Module) -> bool:
        kinds = (nn.Linear, nn.Embedding) if embeddings else nn.Linear
        return isinstance(layer, kinds) and layer.weight.shape[-1] % GROUP == 0

    nn.quantize(kit.text_model, GROUP, bits, class_predicate=fits)
    embeddings = False
    for part in vars(kit.add_on).values() if towers_bits else ():
        if isinstance(part, nn.Module):
            nn.quantize(part, GROUP, towers_bits, class_predicate=fits)
    return kit


@pytest.fixture(scope="module")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a checkpoint of a form once, for tests that leave it as it is."""

    @cache
    def written(form: str) -> Path:
        return FORMS[form](tmp_path_factory.mktemp("source") / "model", seed_of(form))

    return written


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


@pytest.mark.parametrize(
    ("form", "towers_bits"),
    [(form, 8) for form in FORMS if SWEEP or form not in ONE_FORM_EACH]
    + [(form, None) for form in ONE_FORM_EACH],
)
def test_reload_is_exact(
    source_of: Callable[[str], Path], form: str, towers_bits: int | None, tmp_path: Path, seed: int
) -> None:
    source, target = source_of(form), tmp_path / "target"
    before = digests(source)
    made = quantize(source, target, bits=4, group_size=GROUP, towers_bits=towers_bits)
    assert digests(source) == before
    ours = prompt_logits(load_model_kit(target), seed)
    kit = load_model_kit(source)
    plain = prompt_logits(kit, seed)
    expected = prompt_logits(in_memory(kit, 4, towers_bits, False), seed)
    np.testing.assert_array_equal(ours, expected)
    # It did quantize: the decoder, and the towers if they were to be.
    assert not np.array_equal(ours, plain)
    weights = read_weights(target)
    assert made.layers == sum(name.endswith(".scales") for name in weights)
    assert made.nbytes == sum(w.nbytes for w in weights.values()) < made.source_nbytes
    prefixes = kit.config.decoder_prefixes
    quantized = [name for name in weights if name.endswith(".scales")]
    eyes = [name for name in quantized if decoder_name(name, prefixes) is None]
    assert bool(eyes) == bool(towers_bits)


@pytest.mark.parametrize("form", ONE_FORM_EACH)
def test_with_embeddings_and_several_shards(
    source_of: Callable[[str], Path], form: str, tmp_path: Path, seed: int
) -> None:
    source, target = source_of(form), tmp_path / "target"
    quantize(source, target, bits=8, group_size=GROUP, embeddings=True, shard_bytes=20_000)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards == sorted(path.name for path in target.glob("*.safetensors"))
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in read_weights(target).values())
    for shard in shards:
        tensors = load_file(target / shard)
        assert {n for n, home in index["weight_map"].items() if home == shard} == set(tensors)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
    ours = prompt_logits(load_model_kit(target), seed)
    expected = prompt_logits(in_memory(load_model_kit(source), 8, None, True), seed)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("form", ONE_FORM_EACH)
def test_mlx_lm_alone_loads_the_text_half(
    source_of: Callable[[str], Path], form: str, tmp_path: Path, seed: int
) -> None:
    source, target = source_of(form), tmp_path / "target"
    quantize(source, target, bits=4, group_size=GROUP, decoder_only=True)
    kit = load_model_kit(target)
    assert kit.add_on is None
    ours = prompt_logits(kit, seed, sees=False)
    expected = prompt_logits(in_memory(load_model_kit(source), 4, None, False), seed, sees=False)
    np.testing.assert_array_equal(ours, expected)
    kit.text_model, _ = load_model(target)
    np.testing.assert_array_equal(prompt_logits(kit, seed, sees=False), expected)


@pytest.mark.parametrize(
    ("mode", "group_size", "bits"),
    [("affine", 64, 3), ("affine", 32, 6), ("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)],
)
def test_the_same_as_mlx_lm_s_converter(
    few_words_folder: Path, tmp_path: Path, mode: str, group_size: int, bits: int
) -> None:
    from mlx_lm import convert

    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    convert(
        str(few_words_folder), str(theirs), True, q_group_size=group_size, q_bits=bits, q_mode=mode
    )
    given = {} if mode != "affine" else {"bits": bits, "group_size": group_size}
    quantize(few_words_folder, ours, mode=mode, embeddings=True, **given)
    same_checkpoint(ours, theirs)


def same_checkpoint(ours: Path, theirs: Path) -> None:
    a, b = read_weights(ours), read_weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert mx.array_equal(a[name], b[name]).item(), name
    entries = [json.loads((f / "config.json").read_text())["quantization"] for f in (ours, theirs)]
    assert entries[0] == entries[1]
    # And what their converter wrote is what ours loads.
    logits = [tiny_logits(folder) for folder in (ours, theirs)]
    np.testing.assert_array_equal(*logits)


def tiny_logits(folder: Path) -> Any:
    kit = load_model_kit(folder)
    assert kit.text_model is not None
    return np.array(kit.text_model(mx.array([[1, 5, 6, 7]]), cache=kit.make_cache()))


BY_MLX_VLM = """
import sys
from model_kit.blas import preload_openblas; preload_openblas()
import importlib; module = importlib.import_module("mlx_vlm.convert")
from mlx_vlm.utils import load_config, load_model
# These checkpoints have no processor; the converter goes on with one that cannot be saved.
module.fetch_from_hub = lambda path, **_: (load_model(path, True), load_config(path), object())
for folder in sys.argv[1:]:
    module.convert(folder, folder + "-quantized", True, q_group_size=32, q_bits=4)
"""


def test_folders_of_mlx_vlm_s_converter(tmp_path: Path, seed: int) -> None:
    forms = ("gemma3 transformers 4", "pixtral mlx-vlm", "qwen2_vl transformers 4")
    folders = [FORMS[form](tmp_path / form.replace(" ", "-"), seed) for form in forms]
    # mlx-vlm's Gemma 3 looks for this in the text half, where published checkpoints leave it out.
    text = json.loads((folders[0] / "config.json").read_text())["text_config"]
    tiny.edit_config(folders[0], text_config={**text, "mm_tokens_per_image": ROWS})
    subprocess.run([sys.executable, "-c", BY_MLX_VLM, *map(str, folders)], check=True)
    for folder in folders:
        theirs = folder.with_name(folder.name + "-quantized")
        assert any(name.endswith(".scales") for name in read_weights(theirs))
        ours = prompt_logits(load_model_kit(theirs), seed)
        expected = prompt_logits(in_memory(load_model_kit(folder), 4, None, True), seed)
        np.testing.assert_array_equal(ours, expected)


def test_choices_for_single_layers(few_words_folder: Path, tmp_path: Path) -> None:
    """By one of mlx-lm's recipes, recorded as it records them."""
    from mlx_lm import convert
    from mlx_lm.convert import mixed_quant_predicate_builder

    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    convert(str(few_words_folder), str(theirs), True, 32, 4, quant_predicate="mixed_3_6")
    model, _ = load_model(few_words_folder, lazy=True)
    choose = mixed_quant_predicate_builder("mixed_3_6", model, 32)
    quantize(few_words_folder, ours, bits=4, group_size=32, embeddings=True, choose=choose)
    entry = json.loads((theirs / "config.json").read_text())["quantization"]
    assert sum(isinstance(own, dict) for own in entry.values()) > 3
    same_checkpoint(ours, theirs)


def test_choices_by_the_checkpoint_s_names(tmp_path: Path, seed: int) -> None:
    source, target = FORMS["moxin hf"](tmp_path / "source", seed), tmp_path / "target"

    def choose(name: str, layer: nn.Module) -> bool | dict[str, Any]:
        return {"bits": 8} if "v_proj" in name else "down_proj" not in name

    made = quantize(source, target, bits=4, group_size=GROUP, towers_bits=6, choose=choose)
    entry = json.loads((target / "config.json").read_text())["quantization"]
    assert entry["bits"] == 4
    assert entry["language_model.model.layers.1.self_attn.v_proj"]["bits"] == 8
    assert entry["projector.fc2"]["bits"] == 6
    kit = load_model_kit(target)
    assert kit.text_model is not None
    layer = kit.text_model.layers[1]
    assert layer.self_attn.v_proj.bits == 8
    assert layer.self_attn.q_proj.bits == 4
    assert isinstance(layer.mlp.down_proj, nn.Linear)
    # Towers 48 and 40 wide have no groups of 32, but for layers that are wider inside.
    assert "vision_backbone.featurizer.blocks.0.attn.qkv" in made.left
    assert kit.add_on.dino.blocks[0].mlp.fc2.bits == 6  # type: ignore[union-attr]


def test_what_comes_along(tmp_path: Path, demo: Path) -> None:
    source = tiny.save_of_few_words(tiny.of_few_words(1), tmp_path / "source")
    for name in ("preprocessor_config.json", "chat_template.jinja", "tokenizer.model", "LICENSE"):
        (source / name).write_text("{}")
    for name in ("pytorch_model.bin", "model.gguf", ".hidden.json", "weights.npz"):
        (source / name).write_bytes(b"x")
    (source / "folder.json").mkdir()
    quantize(source, tmp_path / "target", group_size=32)
    there = {path.name for path in (tmp_path / "target").iterdir()}
    assert there == {
        *("config.json", "model.safetensors", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        *("preprocessor_config.json", "chat_template.jinja", "tokenizer.model", "LICENSE"),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 7},
        {"bits": True},
        {"group_size": 48},
        {"mode": "int4"},
        {"mode": "mxfp4", "bits": 8},
        {"mode": "nvfp4", "group_size": 32},
        {"towers_bits": 1},
        {"towers_bits": 8},
        {"mode": []},
        {"choose": lambda *_: {"bits": 7}},
        {"choose": lambda *_: {"group_size": 0}},
        {"choose": lambda *_: {"mode": "foo"}},
        {"choose": lambda *_: {"x": 1}},
        {"choose": lambda *_: 5},
        {"shard_bytes": 0},
    ],
)
def test_bad_options(few_words_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        quantize(few_words_folder, tmp_path / "target", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_source(few_words_folder: Path, tmp_path: Path) -> None:
    quantize(few_words_folder, tmp_path / "target", bits=8)
    with pytest.raises(UnsupportedCheckpoint, match="quantized already"):
        quantize(tmp_path / "target", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("decoder_only", [False, True])
@pytest.mark.parametrize("name", ["moxin-instruct", "moxin"])
def test_prompts_stay_the_same(name: str, decoder_only: bool, tmp_path: Path) -> None:
    """Without a template of its own, a Moxin checkpoint is prompted by its name."""
    source, target = FORMS["moxin hf"](tmp_path / name, 1), tmp_path / "target"
    quantize(source, target, group_size=GROUP, decoder_only=decoder_only)
    messages = [{"role": "user", "content": "w9 w8"}]
    before, after = (
        load_model_kit(folder, vocab_only=True).tokenizer.apply_chat_template(
            messages, tokenize=False
        )
        for folder in (source, target)
    )
    assert before == after
    assert ("[INST]" in after) == (name == "moxin-instruct")


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_what_a_model_class_advises(mode: str, tmp_path: Path, seed: int) -> None:
    """mlx-lm's class of Qwen3-MoE wants its routers in 8 bits, whatever the others get."""
    from mlx_lm import convert
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    config = Qwen3MoeConfig(**tiny.SIZES | sizes | {"sliding_window": 0, "vocab_size": VOCAB})
    model = tiny.randomize(Qwen3MoeForCausalLM(config), seed)
    source = tiny.save_of_few_words(model, tmp_path / "source")
    tiny.edit_config(source, num_experts=4, rope_theta=10000.0)  # as their class reads them
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    convert(str(source), str(theirs), True, q_mode=mode)
    quantize(source, ours, mode=mode, embeddings=True)
    assert any(
        own == {"group_size": 64, "bits": 8, "mode": "affine"} for own in entries(ours).values()
    )
    a, b = read_weights(ours), read_weights(theirs)
    assert a.keys() == b.keys()
    assert all(mx.array_equal(a[name], b[name]).item() for name in a)


def entries(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization"]
    return entry
