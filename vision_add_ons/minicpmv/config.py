"""config.json turned into what the parts need."""

from typing import Any

from vision_add_ons.configs import check_fields, resolve_config
from vision_add_ons.errors import BrokenConfig
from vision_add_ons.qwen3_5 import Qwen35AddOn

TWO = ((2, 2), [2, 2])
"""The squares that are merged, as transformers has them and as JSON has."""
TEXTS = ("qwen3_5_text", "qwen3_5_moe_text")


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with every field that it leaves out. Raises `UnsupportedCheckpoint` for those
    that are not served, or `BrokenConfig`."""
    family = config["model_type"]
    given = config.get("vision_config") or {}
    # The resolved one bears the model type of its class, and the whole model's layer.
    check_fields(
        {"model_type": None, **given}, "vision_config", model_type=(None, f"{family}_vision")
    )
    whole = resolve_config(config)
    check_fields(whole, "config", downsample_mode=("16x", "4x"), merge_kernel_size=TWO)
    check_fields(whole, "config", merger_times=(1,), drop_vision_last_layer=(None, False))
    check_fields(whole["vision_config"], "vision_config", window_kernel_size=TWO)
    patch = whole["vision_config"]["patch_size"]
    check_fields({"patch_size": patch, **config}, "config", patch_size=(patch,))
    insert = whole["insert_layer_id"]
    told = {"insert_layer_id": insert, **given}
    check_fields(told, "vision_config", insert_layer_id=(insert,))
    if type(whole["image_token_id"]) is not int:
        raise BrokenConfig(f"image_token_id must be a number, not {whole['image_token_id']!r}")
    return whole


def decoder_config(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The decoder as the Qwen3.5 that it is, and a line for each field that had to be assumed."""
    text = {"model_type": TEXTS[0], **(config.get("text_config") or {})}
    check_fields(text, "text_config", model_type=TEXTS, attn_output_gate=(None, True))
    tied = config.get("tie_word_embeddings", False)
    kind = text["model_type"].removesuffix("_text")
    whole = {"model_type": kind, "text_config": text, "tie_word_embeddings": tied}
    return Qwen35AddOn.decoder_config(whole)
