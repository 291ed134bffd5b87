"""Faults planted into our own add-ons, each of which one check of the kit must name."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine import load
from support.seeds import seed_of
from vision_add_ons.base import VisionAddOn
from vision_add_ons.testing import Kit

FAMILIES = {
    "tiled": ("support.tiled_reference:TiledAddOn", "TiledReference"),
    "gemma3": ("vision_add_ons.gemma3:Gemma3AddOn", "Gemma3Reference"),
    "gemma3n": ("vision_add_ons.gemma3n.add_on:Gemma3nAddOn", "Gemma3nReference"),
    "gemma4": ("vision_add_ons.gemma4.add_on:Gemma4AddOn", "Gemma4Reference"),
    "lfm2_vl": ("vision_add_ons.lfm2_vl.add_on:Lfm2VLAddOn", "Lfm2VLReference"),
    "minicpmv": ("vision_add_ons.minicpmv.add_on:MiniCPMV47AddOn", "MiniCPMV47Reference"),
    "paligemma": ("vision_add_ons.paligemma:PaliGemmaAddOn", "PaliGemma2Reference"),
    "pixtral": ("vision_add_ons.pixtral.add_on:PixtralAddOn", "PixtralReference"),
    "qwen3_vl": ("vision_add_ons.qwen3_vl.add_on:Qwen3VLAddOn", "Qwen3VLReference"),
    "qwen2_vl": ("vision_add_ons.qwen2_vl.add_on:Qwen2VLAddOn", "Qwen2VLReference"),
}

Check = Callable[..., None]


@dataclass
class Planting:
    """One kit a family, with the class as it is; made when it is first asked for."""

    place: Path
    seed: int = seed_of("planted faults")
    kits: dict[str, Kit] = field(default_factory=dict)
    passed: set[Any] = field(default_factory=set)

    def kit(self, family: str) -> Kit:
        if family not in self.kits:
            module, _, name = FAMILIES[family][0].partition(":")
            add_on = getattr(importlib.import_module(module), name)
            references = importlib.import_module(f"support.{family}_reference")
            reference = getattr(references, FAMILIES[family][1])(self.seed)
            self.kits[family] = Kit(add_on, reference, load, self.place / family, self.seed)
        return self.kits[family]

    def caught(self, faulty: type[VisionAddOn], check: Check, saying: str, *arguments: Any) -> None:
        """`check` passes for the family's own class, and says why it fails for this one."""
        classes = {f"{c.__module__}:{c.__name__}" for c in faulty.__mro__}
        family = next(f for f, (path, _) in FAMILIES.items() if path in classes)
        kit = self.kit(family)
        if (family, check, arguments) not in self.passed:
            check(kit, *arguments)
            self.passed.add((family, check, arguments))
        other = kit.serving(faulty)
        try:
            with pytest.raises(AssertionError, match=saying):
                check(other, *arguments)
        finally:
            other.close()

    def close(self) -> None:
        for kit in self.kits.values():
            kit.close()
