"""config.json, as published or as saved by transformers 5, turned into what the parts need."""

from collections.abc import Sequence
from typing import Any

from vision_add_ons.configs import check_fields, positive, resolve_config
from vision_add_ons.errors import BrokenConfig

# What mlx-lm builds the decoder from, and a report names where it had to be assumed.
DECODER_FIELDS = (
    "first_k_dense_replace",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)


def check_half(config: dict[str, Any], half: str) -> None:
    """Raise `UnsupportedCheckpoint` if "vision" or "text" says that it is another family's.

    To be asked of the config as it stands: transformers' class takes what it finds for its own.
    """
    family = config["model_type"]
    served = (None, family, f"{family}_{half}")
    check_fields(config.get(f"{half}_config") or {}, f"{half}_config", model_type=served)


def decoder_config(
    config: dict[str, Any], model_type: str, sections: Sequence[int], partial: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The decoder as the Qwen that it is, and a line for each field that had to be assumed.

    What the config leaves out is as in the family's own config class, whose defaults are not those
    of `model_type`; for `sections` and `partial` see `mrope_sections`.
    """
    check_half(config, "text")
    whole = resolve_config(config)
    text: dict[str, Any] = whole["text_config"]
    mrope_sections(text, sections, partial)
    given = config.get("text_config") or config
    assumed = [
        f"{name}: {text[name]} (default of {text['model_type']})"
        for name in DECODER_FIELDS
        if name in text and name not in given
    ]
    text |= {"model_type": model_type, "tie_word_embeddings": whole["tie_word_embeddings"]}
    rope = text["rope_parameters"]
    text["rope_parameters"] = {k: v for k, v in rope.items() if not k.startswith("mrope")}
    if "sliding_attention" not in text.get("layer_types", ()):
        text["sliding_window"] = None
    return text, assumed


def mrope_sections(text: dict[str, Any], usual: Sequence[int], partial: bool = False) -> list[int]:
    """How many of a head's frequencies follow time, height and width; `usual` where the config
    does not say. `partial` says that a part of a head is turned, where the config has one. Raises
    `BrokenConfig`."""
    rope = text["rope_parameters"]
    part = rope.get("partial_rotary_factor", 1.0) if partial else 1.0
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    number = isinstance(part, int | float) and not isinstance(part, bool)
    if not number or not 0 < part <= 1 or (partial and int(head * part) % 2):
        raise BrokenConfig(
            f"partial_rotary_factor must be a number up to 1 that leaves pairs of the {head} "
            f"channels of a head, not {part!r}"
        )
    sections = rope.get("mrope_section", list(usual))
    half = int(head * part) // 2
    numbers = isinstance(sections, list) and all(type(n) is int and n >= 0 for n in sections)
    if not numbers or len(sections) != 3 or sum(sections) != half:
        raise BrokenConfig(
            f"mrope_section must be three numbers that add up to {half}, half of what is turned of "
            f"a head, not {sections!r}"
        )
    return list(sections)


def check_tower(whole: dict[str, Any], width: str, out_width: str) -> None:
    """Refuse a tower that mlx-vlm's would not compute exactly; `width`, `out_width` name fields.

    Raises `UnsupportedCheckpoint` or `BrokenConfig` naming the field.
    """
    vision, where = whole["vision_config"], "vision_config"
    sizes = ("depth", "num_heads", "patch_size", "temporal_patch_size")
    positive(vision, where, *sizes, width, out_width)
    check_fields(vision, where, in_channels=(3,), spatial_merge_size=(2,))
    check_fields(
        vision["rope_parameters"],
        f"{where}.rope_parameters",
        rope_type=("axial",),
        rope_theta=(10000.0,),
    )
    if vision[width] % (4 * vision["num_heads"]):
        raise BrokenConfig(
            f"{where}.num_heads {vision['num_heads']} does not cut {width} {vision[width]} into "
            "heads whose width is a multiple of 4"
        )
    hidden_size = whole["text_config"]["hidden_size"]
    if vision[out_width] != hidden_size:
        raise BrokenConfig(
            f"{where}.{out_width} {vision[out_width]} is not the decoder's hidden_size, which is "
            f"{hidden_size}"
        )
