"""Low-rank adapters against mlx-lm: put on, taken off, fused; and those that do not fit."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.fuse
import numpy as np
import pytest
from mlx_lm.utils import load_adapters, load_model
from support import tiny
from support.adapters import write_adapter
from support.seeds import SWEEP
from support.seeing_checkpoints import FORMS, ONE_FORM_EACH, prompt_logits

from engine import AdapterError
from model_kit import fuse, load_model_kit, quantize
from model_kit.kit import ModelKit
from vision_add_ons.weights import read_weights

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"kind": "dora"},
    "some layers": {"keys": ["self_attn.q_proj", "mlp.down_proj"]},
}


@pytest.fixture(params=["plain", "4 bits"])
def folder(request: pytest.FixtureRequest, few_words_folder: Path, tmp_path: Path) -> Path:
    if request.param == "plain":
        return few_words_folder
    return quantize(few_words_folder, tmp_path / "source", bits=4, group_size=32).folder


def logits(model: Any) -> np.ndarray:
    return np.array(model(mx.array([[1, 50, 60, 70, 9]])))


def kit_logits(kit: ModelKit) -> np.ndarray:
    return logits(kit.text_model)


@pytest.mark.parametrize("kind", KINDS)
def test_as_mlx_lm_computes_it(folder: Path, tmp_path: Path, kind: str, seed: int) -> None:
    adapter = write_adapter(folder, tmp_path / "adapter", seed, **KINDS[kind])
    kit = load_model_kit(folder)
    before, plain = kit.fingerprint, kit_logits(kit)
    kit.use_adapter(adapter)
    theirs = load_adapters(load_model(folder)[0], str(adapter))
    expected = logits(theirs.eval())
    np.testing.assert_array_equal(kit_logits(kit), expected)
    assert not np.array_equal(expected, plain)
    assert kit.fingerprint != before
    kit.use_adapter(None)
    np.testing.assert_array_equal(kit_logits(kit), plain)
    assert kit.fingerprint == before


def test_one_in_place_of_another(few_words_folder: Path, tmp_path: Path, seed: int) -> None:
    first, second = (write_adapter(few_words_folder, tmp_path / str(i), seed + i) for i in range(2))
    kit = load_model_kit(few_words_folder)
    kit.use_adapter(first)
    one, fingerprint = kit_logits(kit), kit.fingerprint
    kit.use_adapter(second)
    two = kit_logits(kit)
    kit.use_adapter(first)
    np.testing.assert_array_equal(kit_logits(kit), one)
    assert kit.fingerprint == fingerprint
    assert not np.array_equal(one, two)
    with pytest.raises(AdapterError):
        kit.use_adapter(tmp_path / "none")
    np.testing.assert_array_equal(kit_logits(kit), one)
    assert kit.fingerprint == fingerprint


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_as_mlx_lm_fuses(
    folder: Path,
    tmp_path: Path,
    kind: str,
    dequantize: bool,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = write_adapter(folder, tmp_path / "adapter", seed, **KINDS[kind])
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    fuse(folder, adapter, ours, dequantize=dequantize)
    command = ["mlx_lm.fuse", "--model", str(folder)]
    command += ["--adapter-path", str(adapter), "--save-path", str(theirs)]
    monkeypatch.setattr(sys, "argv", [*command, *(["--dequantize"] if dequantize else [])])
    mlx_lm.fuse.main()
    a, b = read_weights(ours), read_weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(np.array(a[name]), np.array(b[name]))
    np.testing.assert_array_equal(kit_logits(load_model_kit(ours)), logits(load_model(theirs)[0]))
    entries = [
        json.loads((f / "config.json").read_text()).get("quantization") for f in (ours, theirs)
    ]
    assert entries[0] == entries[1]
    assert (entries[0] is None) == (dequantize or folder.name == "model")


@pytest.mark.parametrize("form", ONE_FORM_EACH if SWEEP else ONE_FORM_EACH[:2])
def test_on_a_model_that_sees(form: str, tmp_path: Path, seed: int) -> None:
    """The adapter of its text half, trained alone or under the whole checkpoint's names."""
    source = FORMS[form](tmp_path / "source", seed)
    quantize(source, tmp_path / "text", bits=8, group_size=32, decoder_only=True)
    adapter = write_adapter(tmp_path / "text", tmp_path / "adapter", seed)
    kit = load_model_kit(source)
    plain = prompt_logits(kit, seed)
    kit.use_adapter(adapter)
    adapted = prompt_logits(kit, seed)
    assert not np.array_equal(adapted, plain)
    fuse(source, adapter, tmp_path / "fused")
    fused = prompt_logits(load_model_kit(tmp_path / "fused"), seed)
    assert np.linalg.norm(fused - adapted) / np.linalg.norm(adapted) < 1e-5
    if kit.config.decoder_prefixes.get("language_model.") == "":
        tensors = mx.load(str(adapter / "adapters.safetensors"))
        renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}  # type: ignore[union-attr]
        mx.save_safetensors(str(adapter / "adapters.safetensors"), renamed)
        kit.use_adapter(adapter)
        np.testing.assert_array_equal(prompt_logits(kit, seed), adapted)


def _no_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


def _no_weights(adapter: Path) -> None:
    (adapter / "adapters.safetensors").unlink()


def _cut(adapter: Path) -> None:
    file = adapter / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        config = json.loads(file.read_text())
        config["lora_parameters"] |= changes.pop("lora_parameters", {})
        file.write_text(json.dumps({**config, **changes}))

    return change


def _tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(adapter: Path) -> None:
        file = str(adapter / "adapters.safetensors")
        tensors: Any = mx.load(file)
        change(tensors)
        mx.save_safetensors(file, tensors)

    return edit


Q = "model.layers.2.self_attn.q_proj.lora_a"
MISMATCHES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (_no_config, "adapter_config.json"),
    "no weights": (_no_weights, "adapters.safetensors"),
    "cut weights": (_cut, "fetch the file again"),
    "another rank": (_config(lora_parameters={"rank": 3}), "has shape"),
    "no rank": (_config(lora_parameters={"rank": None}), "rank"),
    "a rank of text": (_config(lora_parameters={"rank": "8"}), "rank"),
    "no scale": (_config(lora_parameters={"scale": None}), "scale"),
    "a scale that is no number": (_config(lora_parameters={"scale": float("nan")}), "scale"),
    "fewer layers": (_config(num_layers=1), "no place for"),
    "more layers": (_config(num_layers=3), "lacks"),
    "no layers": (_config(num_layers=None), "num_layers"),
    "whole weights": (_config(fine_tune_type="full"), "full"),
    "no such layer": (_config(lora_parameters={"keys": ["self_attn.x_proj"]}), "no place for"),
    "not a linear layer": (_config(lora_parameters={"keys": ["input_layernorm"]}), "fit"),
    "a tensor more": (_tensors(lambda t: t.update({"x": t[Q]})), "no place for x"),
    "a tensor less": (_tensors(lambda t: t.pop(Q)), f"lacks {Q}"),
    "another width": (_tensors(lambda t: t.update({Q: t[Q][:-1]})), "has shape"),
    "whole numbers": (_tensors(lambda t: t.update({Q: t[Q].astype(mx.int32)})), "int32"),
}


@pytest.fixture(scope="module")
def fitting(few_words_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(few_words_folder, tmp_path_factory.mktemp("fitting") / "adapter", 1)


@pytest.mark.parametrize("case", MISMATCHES)
def test_what_does_not_fit(
    few_words_folder: Path, fitting: Path, tmp_path: Path, case: str
) -> None:
    adapter = shutil.copytree(fitting, tmp_path / "adapter")
    damage, named = MISMATCHES[case]
    damage(adapter)
    kit = load_model_kit(few_words_folder)
    before = kit_logits(kit)
    with pytest.raises(AdapterError, match=named):
        kit.use_adapter(adapter)
    np.testing.assert_array_equal(kit_logits(kit), before)
    with pytest.raises(AdapterError, match=named):
        fuse(few_words_folder, adapter, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_without_a_decoder(few_words_folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(few_words_folder, tmp_path / "adapter", 1)
    kit = load_model_kit(few_words_folder, vocab_only=True)
    with pytest.raises(AdapterError, match="vocab_only"):
        kit.use_adapter(adapter)


def test_another_model_s_adapter(few_words_folder: Path, tmp_path: Path) -> None:
    wider = tiny.save_of_few_words(tiny.of_few_words(3, hidden_size=128), tmp_path / "wider")
    adapter = write_adapter(wider, tmp_path / "adapter", 1)
    with pytest.raises(AdapterError, match="has shape"):
        load_model_kit(few_words_folder).use_adapter(adapter)


def test_dora_on_quantized_embeddings(few_words_folder: Path, tmp_path: Path) -> None:
    """mlx-lm's layer would fail at the first answer."""
    folder = quantize(few_words_folder, tmp_path / "source", bits=8, embeddings=True).folder
    keys = ["model.embed_tokens", "self_attn.q_proj"]
    adapter = write_adapter(folder, tmp_path / "adapter", 1, "dora", keys=keys)
    with pytest.raises(AdapterError, match="embed_tokens"):
        load_model_kit(folder).use_adapter(adapter)


def test_written_to_while_it_is_in_use(few_words_folder: Path, tmp_path: Path) -> None:
    """Training goes on writing into its folder: what was loaded is what counts."""
    adapter = write_adapter(few_words_folder, tmp_path / "adapter", 1)
    other = write_adapter(few_words_folder, tmp_path / "other", 2)
    kit, untouched = load_model_kit(few_words_folder), load_model_kit(few_words_folder)
    untouched.use_adapter(adapter)
    expected = kit_logits(untouched)
    kit.use_adapter(adapter)
    weights = "adapters.safetensors"
    (adapter / weights).write_bytes((other / weights).read_bytes())
    np.testing.assert_array_equal(kit_logits(kit), expected)
    assert kit.fingerprint == untouched.fingerprint
