"""Moxin against transformers' DINOv2, SigLIP and Mistral, in float32."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")

from support import moxin_checkpoint as checkpoint
from support.moxin_checkpoint import FORMS, TowerShape
from support.moxin_reference import MoxinReference, dino_reference, features, siglip_reference
from support.own_family import OwnFamily, alike

from vision_add_ons.moxin import MoxinAddOn, ViTConfig, load_vit_encoder
from vision_add_ons.testing import BOS, TOLERANCE, Kit, relative_error, written


@alike
class TestMoxin(OwnFamily):
    add_on = MoxinAddOn
    reference = MoxinReference

    @pytest.mark.parametrize("form", FORMS)
    def test_positions_of_the_class_token(self, form: str, kit: Kit) -> None:
        """As some towers have them; the others are without."""
        reference = MoxinReference(kit.seed, class_position=True)
        folder = written(reference, kit.new_folder("class position"), form)
        case = kit.case(f"class position, {form}")
        prompt = [BOS, case.image(), *case.words(4), case.image(1), *case.words(9)]
        case.compare(prompt, kit.open(folder), reference)


# --- the published sizes ----------------------------------------------------------------------

DEPTH = 2
"""Blocks that are computed, of 24 and 27 alike: in float32, all of them take minutes."""


@pytest.mark.parametrize("tower", ["dino", "siglip"])
def test_published_tower(tower: str, seed: int) -> None:
    if tower == "dino":
        shape = TowerShape(width=1024, depth=DEPTH, heads=16, mlp=4096, registers=4, dino=True)
        config, build = ViTConfig.dinov2_large(), dino_reference
    else:
        shape = TowerShape(width=1152, depth=DEPTH, heads=16, mlp=4304)
        config, build = ViTConfig.siglip_so400m(), siglip_reference
    tensors = checkpoint.tower(shape, checkpoint.Random(seed), patches=256)
    pixels = np.random.default_rng(seed).standard_normal((224, 224, 3), dtype=np.float32)
    reference = features(build(shape, tensors, 224), shape, pixels).detach().numpy()

    weights = {f"tower.{name}": mx.array(tensor) for name, tensor in tensors.items()}
    assert config.fitted(weights, "tower.", 224, None) == config
    shallow = replace(config, depth=DEPTH)
    ours = load_vit_encoder(weights, "tower.", shallow)(mx.array(pixels)[None])
    assert ours.shape == (1, 256, shape.width)
    error = relative_error(np.array(ours), reference)
    print(f"{tower}: {error:.1e}")
    assert error <= TOLERANCE
