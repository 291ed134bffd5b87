"""Idefics3 and SmolVLM: a picture in tiles, and the whole of it once more, small."""

from vision_add_ons.idefics3.add_on import Idefics3AddOn

__all__ = ["Idefics3AddOn"]
