"""Pixtral: pictures of any size and shape, their patches in lines that break tokens end."""

from vision_add_ons.pixtral.add_on import PixtralAddOn, Projector
from vision_add_ons.pixtral.tower import ACTIVATIONS, PixtralTower

__all__ = ["ACTIVATIONS", "PixtralAddOn", "PixtralTower", "Projector"]
