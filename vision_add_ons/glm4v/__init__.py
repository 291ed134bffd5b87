"""GLM-4.1V, 4.5V and 4.6V: Qwen2-VL's positions before a GLM-4, and a tower of its own."""

from vision_add_ons.glm4v.add_on import Glm4vAddOn

__all__ = ["Glm4vAddOn"]
