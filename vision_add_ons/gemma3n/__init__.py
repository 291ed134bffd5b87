"""Gemma 3n: a convolutional tower, before a decoder whose layers have inputs of their own."""

from vision_add_ons.gemma3n.add_on import Gemma3nAddOn

__all__ = ["Gemma3nAddOn"]
