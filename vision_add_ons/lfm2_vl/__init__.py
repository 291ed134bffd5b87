"""LFM2-VL: pictures of any size in tiles, before a decoder of convolutions and attention."""

from vision_add_ons.lfm2_vl.add_on import Lfm2VLAddOn

__all__ = ["Lfm2VLAddOn"]
