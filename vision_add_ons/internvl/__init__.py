"""InternVL 3: pictures cut into square tiles, four patches of which become a row."""

from vision_add_ons.internvl.add_on import InternVLAddOn

__all__ = ["InternVLAddOn"]
