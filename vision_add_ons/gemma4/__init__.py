"""Gemma 4 with pictures, in both its forms: with a tower, and unified."""

from vision_add_ons.gemma4.add_on import Gemma4AddOn
from vision_add_ons.gemma4.unified import Gemma4UnifiedAddOn

__all__ = ["Gemma4AddOn", "Gemma4UnifiedAddOn"]
