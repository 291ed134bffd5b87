"""Qwen3-VL: features of several of the tower's layers, added in the decoder's first layers."""

from vision_add_ons.qwen3_vl.add_on import Qwen3VLAddOn

__all__ = ["Qwen3VLAddOn"]
