"""Moxin VLM: two vision transformers, DINOv2 and SigLIP, fused into a Mistral decoder."""

from vision_add_ons.moxin.add_on import MoxinAddOn
from vision_add_ons.moxin.preprocessing import normalize_dino, normalize_siglip
from vision_add_ons.moxin.projector import FusedMLPProjector
from vision_add_ons.moxin.vit import ViTEncoder, load_vit_encoder
from vision_add_ons.moxin.vit_config import ViTConfig

__all__ = [
    "FusedMLPProjector",
    "MoxinAddOn",
    "ViTConfig",
    "ViTEncoder",
    "load_vit_encoder",
    "normalize_dino",
    "normalize_siglip",
]
