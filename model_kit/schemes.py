"""How a checkpoint is quantized: MLX's own entry, or another tool's scheme, mostly refused.

mlx-lm takes AWQ, GPTQ and compressed-tensors for what they are not, or rounds on the way, and some
of its classes multiply FP8's bytes as if they were numbers. Served is what is exact.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from model_kit.names import decoder_name
from vision_add_ons.errors import BrokenConfig, UnsupportedCheckpoint
from vision_add_ons.json_files import read_json_if_there
from vision_add_ons.safetensors_files import read_header
from vision_add_ons.weights import weight_files

# By scheme, the modules of mlx-lm that read it exactly.
EXACT = {"fp8": ("deepseek_v3",), "mxfp4": ("gpt_oss",)}

# By the end of a tensor's name, the scheme whose it is where config.json says nothing.
ENDS = {
    ".g_idx": "GPTQ",
    ".qweight": "AWQ or GPTQ",
    ".qzeros": "AWQ or GPTQ",
    ".weight_scale_inv": "FP8",
    ".weight_scale": "FP8 or compressed-tensors",
    ".weight_packed": "compressed-tensors",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".W_q": "HQQ",
}
WHAT_TO_DO = "take the checkpoint in bfloat16, or quantized by MLX"


def mlx_entry(
    raw: dict[str, Any], text: dict[str, Any], prefixes: Mapping[str, str | None]
) -> dict[str, Any] | None:
    """mlx's `quantization` entry with the per-layer names as the decoder's own modules have."""
    entry = raw.get("quantization", text.get("quantization"))
    if entry is None:
        return None
    if not isinstance(entry, dict) or not {"bits", "group_size"} <= set(entry):
        raise BrokenConfig("config.json's quantization must give bits and group_size")
    for name in ("bits", "group_size"):
        if type(entry[name]) is not int or entry[name] < 1:
            raise BrokenConfig(f"quantization's {name} must be a number, not {entry[name]!r}")
    renamed = {}
    for name, value in entry.items():
        # Layers are named without the dot that ends a prefix: "lm_head".
        own = decoder_name(f"{name}.", prefixes)
        renamed[own.removesuffix(".") if own else name] = value
    return renamed


def check_scheme(folder: Path, module: str, raw: dict[str, Any], text: dict[str, Any]) -> None:
    """Refuse what another tool than MLX quantized, unless mlx-lm's `module` reads it exactly.

    `raw` is config.json and `text` the decoder's part of it. Raises `UnsupportedCheckpoint`, or
    `BrokenConfig` for an entry that tells no scheme.
    """
    if raw.get("quantization", text.get("quantization")) is not None:
        return  # it goes before the other entry, also in mlx-lm
    where = "quantization_config"
    entry = raw.get(where) or text.get(where)
    if not entry:
        # NVIDIA's tools write a file of their own, which mlx-lm reads.
        where = "hf_quant_config.json"
        entry = read_json_if_there(folder / where)
        entry = {"quant_method": "modelopt"} if entry else None
    if not entry:
        return
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    if not isinstance(method, str) or not method:
        raise BrokenConfig(f"config.json's {where} must be an object that gives quant_method")
    if module not in EXACT.get(method, ()):
        raise UnsupportedCheckpoint(
            f"the weights are quantized by {method[:40]!r} ({where}.quant_method), which is not "
            f"supported for {module}: {WHAT_TO_DO}"
        )


def check_tensors(folder: Path, module: str, weights: dict[str, mx.array]) -> None:
    """The same for tensors of which config.json says nothing. Raises `UnsupportedCheckpoint`."""
    fp8: set[str] = set()
    if any(array.dtype == mx.uint8 for array in weights.values()):
        fp8 = _fp8_tensors(folder)
    for name in weights:
        scheme = next((scheme for end, scheme in ENDS.items() if name.endswith(end)), None)
        scheme = "FP8" if name in fp8 else scheme
        if scheme is not None and module not in EXACT.get(scheme.lower(), ()):
            raise UnsupportedCheckpoint(
                f"{name} is of weights quantized by {scheme}, which is not supported for {module}: "
                f"{WHAT_TO_DO}"
            )


def _fp8_tensors(folder: Path) -> set[str]:
    """By the files' headers: MLX has no such type, and reads the bytes."""
    headers = [read_header(file) for file in weight_files(folder)]
    return {
        name
        for header in headers
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F8_E4M3"
    }
