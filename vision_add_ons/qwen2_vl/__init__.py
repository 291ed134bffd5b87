"""Qwen2-VL: pictures of any size, and positions that follow their rows and columns."""

from vision_add_ons.qwen2_vl.add_on import Qwen2VLAddOn

__all__ = ["Qwen2VLAddOn"]
