"""A torch model's matrix products, summed in another order: as right, and rounded otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def summed_in_order(model: torch.nn.Module, order: int) -> Iterator[None]:
    """Each linear layer sums its products in an order drawn from `order`; 0 is its own."""
    generator = torch.Generator().manual_seed(order)

    def sum_otherwise(layer: Any, args: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
        drawn = torch.randperm(layer.in_features, generator=generator)
        weight = layer.weight[:, drawn]
        return torch.nn.functional.linear(args[0][..., drawn], weight, layer.bias)

    layers = [m for m in model.modules() if order and isinstance(m, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(sum_otherwise) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
