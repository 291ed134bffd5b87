"""MiniCPM-V 4.6 and 4.7: a picture as a whole, and once more in slices of one shape."""

from vision_add_ons.minicpmv.add_on import MiniCPMV46AddOn, MiniCPMV47AddOn

__all__ = ["MiniCPMV46AddOn", "MiniCPMV47AddOn"]
