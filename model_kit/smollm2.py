"""SmolLM2-135M-Instruct: from one GGUF file to an ordinary checkpoint folder.

GGUF calls the architecture "llama"; with these dimensions Mistral is the same function, so the
folder says `mistral` and serves as the decoder of vision models that are built on Mistral.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_kit.blas import preload_openblas
from model_kit.files import write_json

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # the token type of GGUF for special tokens


def convert(
    gguf: Path,
    folder: Path,
    dtype: str,
    progress: Callable[[int, int], None] | None = None,
    change: Callable[[dict[str, Any], dict[str, Any]], tuple[Any, Any]] | None = None,
) -> None:
    """Write the model in `gguf` into the existing `folder`: config, weights and tokenizer.

    `dtype` is "float32" or "bfloat16"; `progress` is called with (tensors written, all tensors).
    `change` is given the config and the tensors, float32 and not yet computed, and returns others.
    """
    preload_openblas()
    import mlx.core as mx

    from model_kit.safetensors_writer import write_safetensors

    # The stream of the CPU exists in every thread, and all of the work is memory-bound anyway.
    with mx.stream(mx.cpu):
        loaded: Any = mx.load(str(gguf), return_metadata=True)
        arrays, facts = loaded
        for key, value in facts.items():
            if isinstance(value, mx.array):
                facts[key] = value.tolist()
        config = _config(facts, dtype)
        write_json(folder / "generation_config.json", {k: config[k] for k in _TOKEN_IDS})
        _write_tokenizer(folder, facts)
        weights = {_hf_name(name): name for name in arrays if name.endswith(".weight")}
        tensors = {name: _tensor(arrays, weights[name], config) for name in sorted(weights)}
        del arrays, loaded
        if change is not None:
            config, tensors = change(config, tensors)
        write_json(folder / "config.json", config)
        tensors = {name: tensor.astype(getattr(mx, dtype)) for name, tensor in tensors.items()}
        total = len(tensors)
        if progress:
            progress(0, total)

        def written(_: int) -> None:
            if progress:
                progress(total - len(tensors), total)

        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"}, written)


# --- config -----------------------------------------------------------------------------------

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _config(facts: dict[str, Any], dtype: str) -> dict[str, Any]:
    heads = facts["llama.attention.head_count"]
    hidden = facts["llama.embedding_length"]
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": hidden,
        "num_hidden_layers": facts["llama.block_count"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": facts["llama.rope.freq_base"],
        "max_position_embeddings": facts["llama.context_length"],
        "sliding_window": None,
        "tie_word_embeddings": True,
        "vocab_size": facts["llama.vocab_size"],
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "initializer_range": 0.041666666666666664,
        "use_cache": True,
        "torch_dtype": dtype,
    }


# --- weights ----------------------------------------------------------------------------------


def _hf_name(gguf_name: str) -> str:
    layer, part = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", gguf_name).groups()  # type: ignore[union-attr]
    return f"{f'model.layers.{layer}.' if layer else ''}{_NAMES[part]}.weight"


def _tensor(arrays: dict[str, Any], name: str, config: dict[str, Any]) -> Any:
    """One tensor in float32, not yet computed."""
    import mlx.core as mx

    weight, base = arrays[name], name.removesuffix(".weight")
    if f"{base}.scales" not in arrays:
        return weight.astype(mx.float32)
    scales, biases = (arrays[f"{base}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
    bits = weight.shape[-1] // scales.shape[-1]  # a group of 32 values fills `bits` words
    weight = mx.dequantize(weight, scales, biases, group_size=32, bits=bits)
    if base.endswith(("attn_q", "attn_k")):
        # GGUF interleaves the two halves of each head for its own form of rotary embedding.
        pairs = weight.reshape(-1, config["head_dim"] // 2, 2, weight.shape[-1])
        weight = pairs.swapaxes(1, 2).reshape(weight.shape)
    return weight


# --- tokenizer --------------------------------------------------------------------------------


def _write_tokenizer(folder: Path, facts: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in map(str.split, facts["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = facts["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))

    bos, eos, unk, pad = (
        tokens[facts[f"tokenizer.ggml.{kind}_token_id"]]
        for kind in ("bos", "eos", "unknown", "padding")
    )
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": facts["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": facts["tokenizer.ggml.add_space_prefix"],
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unk,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts["llama.context_length"],
        "chat_template": facts["tokenizer.chat_template"],
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
