"""GLM-4.1V and GLM-4.6V-Flash: Qwen2-VL's positions before a GLM-4, and a tower of its own."""

from vision_add_ons.glm4v.add_on import Glm4vAddOn

__all__ = ["Glm4vAddOn"]
