"""config.json, as first published or as transformers reads it, turned into what the parts need."""

from typing import Any

from vision_add_ons.configs import check_fields, positive, resolve_config
from vision_add_ons.errors import UnsupportedCheckpoint

OLD_TYPE = "lfm2-vl"
"""What the first checkpoints are called, and most of those that were converted to MLX."""
KINDS = {"conv", "full_attention"}


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with every field that it leaves out, in transformers' form."""
    config = {**config, "model_type": "lfm2_vl"}
    if "image_token_index" in config:
        config.setdefault("image_token_id", config["image_token_index"])
    vision, text = config.get("vision_config"), config.get("text_config")
    if isinstance(vision, dict):
        # mlx-vlm has the family's name there.
        kind = vision.get("model_type", "siglip2_vision_model")
        kind = "siglip2_vision_model" if kind == "lfm2_vl" else kind
        config["vision_config"] = {**vision, "model_type": kind}
        # Beforehand: what other towers' fields mean is not for us to judge.
        check_fields(config["vision_config"], "vision_config", model_type=("siglip2_vision_model",))
    if isinstance(text, dict):
        config["text_config"] = {"model_type": "lfm2", **text}
        check_fields(config["text_config"], "text_config", model_type=("lfm2",))
    return resolve_config(config)


def decoder_config(config: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """The decoder's fields `text` as mlx-lm's `lfm2` reads them.

    Raises `UnsupportedCheckpoint` for what it would compute otherwise than transformers does.
    """
    whole = resolve(config)
    resolved, where = whole["text_config"], "text_config"
    # There is no head but the embeddings.
    check_fields(whole, "config", tie_word_embeddings=(True,))
    check_fields(resolved["rope_parameters"], f"{where}.rope_parameters", rope_type=("default",))
    width, heads = resolved["hidden_size"], resolved["num_attention_heads"]
    positive(resolved, where, "hidden_size", "num_attention_heads", "conv_L_cache")
    check_fields({"head_dim": None, **resolved}, where, head_dim=(None, width // heads))
    kinds = resolved["layer_types"]
    if set(kinds) != KINDS or resolved["conv_L_cache"] < 2:
        name = "conv_L_cache" if set(kinds) == KINDS else "layer_types"
        raise UnsupportedCheckpoint(
            f"{where}.{name} {resolved[name]} is not supported: mlx-lm's lfm2 takes layers of "
            "both kinds, conv and full_attention, and convolutions over 2 positions or more"
        )
    text = {**text, "model_type": "lfm2", "layer_types": kinds, "block_dim": width}
    text.pop("full_attn_idxs", None)  # the layers' types count
    return text
