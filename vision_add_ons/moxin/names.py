"""How checkpoints call their tensors: native Prismatic ones, and the Hugging Face conversion."""

import re

PROJECTOR = "projector."

# Prefixes of the DINO and the SigLIP tower: native checkpoints, the same with numbered towers,
# and the Hugging Face conversion, last because its DINO prefix begins the numbered ones too.
TOWERS = (
    ("vision_backbone.dino_featurizer.", "vision_backbone.siglip_featurizer."),
    ("vision_backbone.featurizer.0.", "vision_backbone.featurizer.1."),
    ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer."),
)

# The projector as a sequence, in which GELU takes 1 and 3.
NUMBERED = {"0": "fc1", "2": "fc2", "4": "fc3"}


def projector_name(name: str) -> str:
    """A projector's tensor by the conversion's name; `name` is without the prefix."""
    layer, _, rest = name.removeprefix(PROJECTOR).partition(".")
    return f"{NUMBERED.get(layer, layer)}.{rest}"


def published_name(name: str) -> str:
    """The conversion's name for a tensor by any of the names that are read."""
    if name.startswith("llm_backbone.llm."):
        return "language_model." + name.removeprefix("llm_backbone.llm.")
    if name.startswith(PROJECTOR):
        return PROJECTOR + projector_name(name.removeprefix(PROJECTOR))
    for towers in TOWERS:
        for there, here in zip(towers, TOWERS[-1], strict=True):
            if name.startswith(there):
                name = here + name.removeprefix(there)
                name = re.sub(r"(\.ls[12])\.gamma$", r"\1.scale_factor", name)
                return re.sub(r"\.register_tokens$", ".reg_token", name)
    return name
