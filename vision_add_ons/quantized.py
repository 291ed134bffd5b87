"""Checks of MLX-quantized weights that MLX leaves out."""

import mlx.core as mx
import mlx.nn as nn

from vision_add_ons.errors import UnexpectedShape


def check_scales(module: nn.Module, weights: dict[str, mx.array], where: str) -> None:
    """Raise `UnexpectedShape` where scales in `weights` are not those of a layer's groups.

    To be asked before the layers are quantized: with a group of nothing, MLX divides by zero, and
    that ends the process. `where` is put before the names in messages.
    """
    for name, layer in module.named_modules():
        scales = weights.get(f"{name}.scales")
        kernel = getattr(layer, "weight", None)
        if scales is None or not isinstance(kernel, mx.array):
            continue
        inputs, groups = kernel.shape[-1], scales.shape[-1] if scales.ndim else 0
        if not groups or inputs % groups or groups > inputs:
            raise UnexpectedShape(
                f"{where}{name}.scales has shape {scales.shape}, but the layer's {inputs} inputs "
                "cannot be so many groups"
            )
