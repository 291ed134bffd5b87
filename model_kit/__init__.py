"""A checkpoint folder becomes a `ModelKit`: config, decoder, tokenizer, add-on.

Nothing is imported until it is asked for: OpenBLAS must be loaded before MLX (see
`model_kit.blas`), and an application that only wants to show its window should not wait for both.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_kit.conversion import convert
    from model_kit.fusing import fuse
    from model_kit.kit import ModelKit, inspect_checkpoint, load_model_kit
    from model_kit.quantization import Quantized, quantize
    from model_kit.report import LoadReport

__all__ = [
    "LoadReport",
    "ModelKit",
    "Quantized",
    "convert",
    "fuse",
    "inspect_checkpoint",
    "load_model_kit",
    "quantize",
]

_HOMES = {
    "LoadReport": "report",
    "Quantized": "quantization",
    "convert": "conversion",
    "fuse": "fusing",
    "quantize": "quantization",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name in ("convert", "fuse", "quantize"):  # they load no engine that would see to it
        from model_kit.blas import preload_openblas

        preload_openblas()
    return getattr(importlib.import_module(f"model_kit.{_HOMES.get(name, 'kit')}"), name)
