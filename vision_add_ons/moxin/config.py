"""What config.json says about a Moxin checkpoint, and what it must say for us to serve it."""

from typing import Any

from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint

SERVED: dict[str, Any] = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "use_fused_vision_backbone": True,
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None],
}

# Moxin 7B. Saved configs leave out what equals a default of the code that wrote them.
DECODER_DEFAULTS: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def check_served(config: dict[str, Any]) -> None:
    """Refuse (`UnsupportedCheckpoint`) an architecture other than Moxin's; absent fields pass."""
    for field, served in SERVED.items():
        if config.get(field) not in (None, served):
            raise UnsupportedCheckpoint(
                f"{field} of config.json is {config[field]!r}; only {served!r} is served"
            )


def decoder_config(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`text_config` completed by Moxin 7B's values, and a line for each value so assumed."""
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise BrokenConfig(f"text_config of config.json must be an object, not {text!r}")
    given = {name for name, value in text.items() if value is not None}
    if "rope_theta" in (text.get("rope_parameters") or {}):
        given.add("rope_theta")
    assumed = {n: value for n, value in DECODER_DEFAULTS.items() if n not in given}
    lines = [f"{n}: {value!r} (absent; Moxin 7B's)" for n, value in assumed.items()]
    return {**text, **assumed}, lines


def image_size(config: dict[str, Any]) -> int:
    """The side, in pixels, of the square that both towers see: `image_sizes`, else 224."""
    sizes = config.get("image_sizes", [224, 224])
    sizes = sizes if isinstance(sizes, list) else [sizes]
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise BrokenConfig(f"image_sizes of config.json must be numbers of pixels, not {sizes}")
    if len(set(sizes)) > 1:
        raise UnsupportedCheckpoint(f"image_sizes is {sizes}; only towers of one size are served")
    return sizes[0]


def num_heads(config: dict[str, Any], tower: str) -> int | None:
    """`dino_num_heads` or `siglip_num_heads`, our fields for towers of unpublished sizes."""
    heads = config.get(f"{tower}_num_heads")
    if heads is not None and not (type(heads) is int and heads > 0):
        raise BrokenConfig(f"{tower}_num_heads of config.json must be a number, not {heads!r}")
    return heads


def placeholder_id(config: dict[str, Any]) -> int:
    """The token id that holds an embedding row's place in the prompt."""
    text, _ = decoder_config(config)
    named = (config.get("image_token_index"), text.get("pad_token_id"), config.get("pad_token_id"))
    chosen = next((token for token in named if token is not None), 32000)
    # Only a filler: the rows replace it before the decoder sees it. It must still be a token that
    # the decoder could embed, because all of the prompt is looked up at once.
    if type(chosen) is not int:
        raise BrokenConfig(f"image_token_index must be a token id, not {chosen!r}")
    return chosen if 0 <= chosen < text["vocab_size"] else 0
