"""Families with towers, small and of published sizes, as mlx-vlm builds and runs them, on random
weights."""

from . import gemma, pixtral, qwen, tiles
from .checkpoint import mlx_vlm_model, write_checkpoint
from .family import IMAGE, Family, with_blocks

FAMILIES = {**gemma.FAMILIES, **tiles.FAMILIES, **pixtral.FAMILIES, **qwen.FAMILIES}

__all__ = ["FAMILIES", "IMAGE", "Family", "mlx_vlm_model", "with_blocks", "write_checkpoint"]
