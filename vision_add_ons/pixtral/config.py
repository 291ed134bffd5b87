"""What Pixtral's config.json and image processor say."""

from typing import Any

from vision_add_ons.errors import BrokenConfig

# What transformers takes a `llava` for that does not say what its halves are.
LLAVA_HALVES = {"vision_config": "clip_vision_model", "text_config": "llama"}
HALVES = {"vision_config": "pixtral", "text_config": "mistral"}

LONGEST = 100_000
"""Pixels along a side; an image processor that asks for more is damaged."""


def half_config(config: dict[str, Any], field: str) -> dict[str, Any]:
    """`vision_config` or `text_config`, with a model type."""
    given = config.get(field) or {}
    if not isinstance(given, dict):
        raise BrokenConfig(f"{field} of config.json must be an object, not {given!r}")
    usual = LLAVA_HALVES if config["model_type"] == "llava" else HALVES
    return {"model_type": usual[field], **given}


def size_limit(size: Any) -> tuple[int, int]:
    """The image processor's `size` as the largest width and height."""
    sides = [size, size]
    if isinstance(size, dict):
        longest = size.get("longest_edge")
        sides = [longest, longest] if longest else [size.get("width"), size.get("height")]
    if not all(type(side) is int and 0 < side <= LONGEST for side in sides):
        raise BrokenConfig(
            f"the image processor's size must give longest_edge, or width and height, up to "
            f"{LONGEST}, not {size!r}"
        )
    return sides[0], sides[1]
