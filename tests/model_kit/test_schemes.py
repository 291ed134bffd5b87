"""Checkpoints that another tool than MLX quantized: named and refused, or decoded exactly."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from support import tiny
from support.mistral3_reference import Ministral3Reference, Mistral3Reference
from support.pixtral_reference import PixtralReference
from support.qwen2_vl_reference import Qwen2VLReference
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GptOssConfig, GptOssForCausalLM

from model_kit import inspect_checkpoint, load_model_kit
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.testing import VOCAB, written
from vision_add_ons.testing.folders import tensors_of
from vision_add_ons.weights import parameters

WHAT_TO_DO = "take the checkpoint in bfloat16, or quantized by MLX"
METHODS: dict[str, dict[str, Any]] = {
    "awq": {"bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "gptq": {"bits": 4, "group_size": 128, "desc_act": False},
    "bitsandbytes": {"load_in_4bit": True},
    "fp8": {"weight_block_size": [128, 128]},
    "compressed-tensors": {"format": "float-quantized"},
    "modelopt": {"quant_algo": "NVFP4"},
    "hqq": {"quant_config": {}},
    "torchao": {"quant_type": "int4_weight_only"},
    "mxfp4": {},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemes") / "whole"
    return tiny.save_of_few_words(tiny.of_few_words(1), folder)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "folder")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    references = (Qwen2VLReference, PixtralReference, Mistral3Reference, Ministral3Reference)
    return {r.name: written(r(1), place / str(i)) for i, r in enumerate(references)}


def refused(folder: Path, named: str) -> None:
    for open_it in (load_model_kit, inspect_checkpoint):
        with pytest.raises(UnsupportedCheckpoint, match=named) as caught:
            open_it(folder)
        assert WHAT_TO_DO in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_the_scheme_of_a_text_checkpoint_is_named(method: str, folder: Path) -> None:
    tiny.edit_config(folder, quantization_config={"quant_method": method, **METHODS[method]})
    refused(folder, f"quantized by '{method}'")


@pytest.mark.parametrize("where", ["the top", "text_config"])
def test_so_it_is_in_every_family(where: str, families: dict[str, Path], tmp_path: Path) -> None:
    entry = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    for name, family in families.items():
        folder = shutil.copytree(family, tmp_path / name)
        if where == "the top":
            tiny.edit_config(folder, **entry)
        else:
            text = json.loads((folder / "config.json").read_text())["text_config"]
            tiny.edit_config(folder, text_config={**text, **entry})
        refused(folder, "quantized by 'awq'")
        with pytest.raises(UnsupportedCheckpoint, match="quantized by 'awq'"):
            load_model_kit(folder, decoder_only=True)


def test_a_file_of_nvidias_tools(folder: Path) -> None:
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(settings))
    refused(folder, "quantized by 'modelopt' .hf_quant_config.json")


@pytest.mark.parametrize("entry", [{"bits": 4}, {"quant_method": 3}, {"quant_method": ""}, True])
def test_an_entry_without_a_scheme(entry: Any, folder: Path) -> None:
    tiny.edit_config(folder, quantization_config=entry)
    with pytest.raises(BrokenConfig, match=r"quantization_config.*quant_method"):
        load_model_kit(folder)


PROJECTION = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("end", "named"),
    [
        ("qweight", "AWQ or GPTQ"),
        ("qzeros", "AWQ or GPTQ"),
        ("g_idx", "GPTQ"),
        ("weight_scale_inv", "FP8"),
        ("weight_packed", "compressed-tensors"),
        ("weight.absmax", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
    ],
)
def test_tensors_tell_it_where_the_config_does_not(end: str, named: str, folder: Path) -> None:
    name = f"{PROJECTION}.{end}"
    tiny.edit_weights(folder, lambda w: w.update({name: torch.ones(4, dtype=torch.int32)}))
    refused(folder, f"{name} is of weights quantized by {named}")


def test_so_does_their_dtype(folder: Path) -> None:
    name = f"{PROJECTION}.weight"
    tiny.edit_weights(folder, lambda w: w.update({name: w[name].to(torch.float8_e4m3fn)}))
    refused(folder, f"{name} is of weights quantized by FP8")


def test_numbers_that_mlx_has_not(folder: Path) -> None:
    name = f"{PROJECTION}.weight"
    tiny.edit_weights(folder, lambda w: w.update({name: w[name].to(torch.float8_e5m2)}))
    refused(folder, "holds numbers that MLX cannot read .*F8_E5M2")


def test_fp8_is_never_multiplied_undecoded(families: dict[str, Path], tmp_path: Path) -> None:
    """mlx-lm's Ministral 3 takes the bytes for numbers."""
    folder = shutil.copytree(families[Ministral3Reference.name], tmp_path / "fp8")
    tensors = tensors_of(folder)
    name = next(n for n in sorted(tensors) if n.endswith("up_proj.weight"))
    changed = {name: mx.to_fp8(tensors[name]), f"{name}_scale_inv": mx.array(0.5)}
    mx.save_safetensors(str(folder / "model.safetensors"), {**tensors, **changed})
    refused(folder, "quantized by FP8")
    with pytest.raises(UnsupportedCheckpoint, match="quantized by FP8"):
        load_model_kit(folder, decoder_only=True)


def test_fp8_that_mlx_lm_decodes_is_exact(tmp_path: Path, seed: int) -> None:
    config = DeepseekV3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=32,
        q_lora_rank=48,
        qk_rope_head_dim=16,
        qk_nope_head_dim=32,
        v_head_dim=32,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = tiny.randomize(DeepseekV3ForCausalLM(config), seed).to(torch.bfloat16)
    plain = tiny.save_of_few_words(model, tmp_path / "plain")
    packed = shutil.copytree(plain, tmp_path / "packed")

    def pack(tensors: dict[str, Any], decoded: bool) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            kernel = tensors[name].float()
            rows, columns = (-(-side // 128) for side in kernel.shape)
            scales = 0.002 + torch.arange(rows * columns).reshape(rows, columns) / 1000
            each = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
            each = each[: kernel.shape[0], : kernel.shape[1]]
            byte = (kernel / each).clamp(-448, 448).to(torch.float8_e4m3fn)
            if decoded:
                tensors[name] = (byte.float() * each).to(torch.bfloat16)
            else:
                tensors |= {name: byte, f"{name}_scale_inv": scales}

    tiny.edit_weights(plain, lambda w: pack(w, decoded=True))
    tiny.edit_weights(packed, lambda w: pack(w, decoded=False))
    scheme = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    tiny.edit_config(packed, quantization_config=scheme)
    models = [load_model_kit(folder).text_model for folder in (plain, packed)]
    assert models[0] is not None
    assert models[1] is not None
    ours, theirs = (parameters(model) for model in models)
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]) for name in ours)
    assert inspect_checkpoint(packed).other_quantization == "fp8"


def test_mxfp4_as_openai_publishes_it_is_exact(tmp_path: Path, seed: int) -> None:
    config = GptOssConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        sliding_window=32,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = tiny.randomize(GptOssForCausalLM(config), seed)
    folder = tiny.save_of_few_words(model, tmp_path / "folder")
    tensors = tensors_of(folder)
    mx.eval(tensors)  # before their file is written anew
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        kernel = mx.contiguous(tensors.pop(name).swapaxes(1, 2))
        packed, scales = mx.quantize(kernel, 32, 4, mode="mxfp4")
        decoded = mx.dequantize(packed, scales, None, 32, 4, mode="mxfp4").swapaxes(1, 2)
        model.state_dict()[name].copy_(torch.tensor(np.array(decoded.astype(mx.float32))))
        tensors[f"{name}_blocks"] = packed.view(mx.uint8).reshape(*scales.shape, 16)
        tensors[f"{name}_scales"] = scales
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    tiny.edit_config(folder, quantization_config={"quant_method": "mxfp4"})
    text = load_model_kit(folder).text_model
    assert text is not None
    tokens = [1, 9, 12, 30, 11, 40]
    ours, theirs = np.array(text(mx.array([tokens]))[0, -1]), tiny.last_logits(model, tokens)
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= 2e-5
