"""Which vision add-on serves which model type: built in, or brought by an installed package.

A key is a model type (`llava`), or a model type and that of its vision tower (`llava.pixtral`), for
model types that stand for more than one family. The longer key goes before the shorter.
"""

import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from vision_add_ons.errors import AddOnError, SightlineError

if TYPE_CHECKING:
    from vision_add_ons.base import VisionAddOn

GROUP = "sightline.vision_add_ons"
"""The entry-point group in which installed packages bring add-ons, each named after its key."""

# Named rather than imported: a family's module loads only when a checkpoint needs it.
BUILT_IN = {
    "gemma3": "vision_add_ons.gemma3:Gemma3AddOn",
    "gemma3n": "vision_add_ons.gemma3n:Gemma3nAddOn",
    "gemma4": "vision_add_ons.gemma4:Gemma4AddOn",
    "gemma4_unified": "vision_add_ons.gemma4:Gemma4UnifiedAddOn",
    "idefics3": "vision_add_ons.idefics3:Idefics3AddOn",
    "internvl": "vision_add_ons.internvl:InternVLAddOn",
    "glm4v": "vision_add_ons.glm4v:Glm4vAddOn",
    "glm4v_moe": "vision_add_ons.glm4v:Glm4vAddOn",
    "llava.pixtral": "vision_add_ons.pixtral:PixtralAddOn",
    "lfm2-vl": "vision_add_ons.lfm2_vl:Lfm2VLAddOn",
    "lfm2_vl": "vision_add_ons.lfm2_vl:Lfm2VLAddOn",
    "minicpmv4_6": "vision_add_ons.minicpmv:MiniCPMV46AddOn",
    "minicpmv4_7": "vision_add_ons.minicpmv:MiniCPMV47AddOn",
    "mistral3": "vision_add_ons.mistral3:Mistral3AddOn",
    "moxin": "vision_add_ons.moxin:MoxinAddOn",
    "paligemma": "vision_add_ons.paligemma:PaliGemmaAddOn",
    "pixtral": "vision_add_ons.pixtral:PixtralAddOn",
    "prismatic": "vision_add_ons.moxin:MoxinAddOn",
    "qwen2_5_vl": "vision_add_ons.qwen2_5_vl:Qwen25VLAddOn",
    "qwen2_vl": "vision_add_ons.qwen2_vl:Qwen2VLAddOn",
    "qwen3_5": "vision_add_ons.qwen3_5:Qwen35AddOn",
    "qwen3_5_moe": "vision_add_ons.qwen3_5:Qwen35AddOn",
    "qwen3_vl": "vision_add_ons.qwen3_vl:Qwen3VLAddOn",
    "qwen3_vl_moe": "vision_add_ons.qwen3_vl:Qwen3VLAddOn",
    "smolvlm": "vision_add_ons.idefics3:Idefics3AddOn",
}
"""Our own add-ons by key, as `module:Class`."""

OTHER_LAYOUTS = {
    "internvl_chat": "one whose name ends in -hf, such as OpenGVLab/InternVL3-8B-hf",
}
"""Model types of layouts that only code beside the checkpoint reads, and which checkpoints hold the
same models in a layout that is served."""


class AddOnConflict(SightlineError):
    """Two add-ons claim the same key; the message names both."""


def registered() -> dict[str, str]:
    """Every known key and where its add-on lives, as `module:Class`.

    An installed package adds entry points to the group `sightline.vision_add_ons`, each named
    after a key. Raises `AddOnConflict` when one is claimed twice.
    """
    found = dict(BUILT_IN)
    for entry in _entries(_places()):
        claimed = found.setdefault(entry.name, entry.value)
        if claimed != entry.value:
            raise AddOnConflict(
                f"model type {entry.name!r} is claimed by {claimed} and by {entry.value}; "
                "uninstall one of the two packages"
            )
    return found


@lru_cache(maxsize=1)
def _entries(places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """The packages' entry points: every package's are read, so only where `places` are others."""
    return tuple(entry_points(group=GROUP))


def _places() -> tuple[tuple[str, int], ...]:
    """The folders that packages are found in, and when something was last put in or taken out."""
    places = []
    for place in map(os.path.abspath, sys.path):
        try:
            places.append((place, os.stat(place).st_mtime_ns))
        except OSError:
            places.append((place, 0))
    return tuple(places)


def find_add_on(model_type: str, tower: str | None = None) -> "type[VisionAddOn] | None":
    """The add-on class for a model type, or None if no add-on claims it.

    `tower` is `vision_config`'s own model type, where config.json tells it. Raises `AddOnError`
    for one that cannot be imported.
    """
    known = registered()
    for key in (f"{model_type}.{tower}", model_type):
        if key in known:
            try:
                add_on: type[VisionAddOn] = EntryPoint(key, known[key], GROUP).load()
            except Exception as error:
                raise AddOnError(
                    f"the add-on {known[key]} cannot be imported "
                    f"({type(error).__name__}: {error}); "
                    "install what it lacks, or tell its author"
                ) from error
            return add_on
    return None


def served_towers(model_type: str) -> list[str]:
    """The towers' types for which some add-on claims this model type."""
    return sorted(key.partition(".")[2] for key in registered() if key.startswith(f"{model_type}."))


def import_path(add_on: "type[VisionAddOn]") -> str:
    """How an add-on class is named in reports: `module:Class`."""
    return f"{add_on.__module__}:{add_on.__qualname__}"
