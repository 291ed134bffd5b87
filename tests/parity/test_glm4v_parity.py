"""GLM-4V against transformers, in float32: with experts, and without."""

import pytest

pytest.importorskip("torch")

from support.glm4v_reference import Glm4vMoeReference, Glm4vReference
from support.own_family import OwnFamily, alike, with_another_decoder

from vision_add_ons.glm4v import Glm4vAddOn


@alike
class TestGlm4v(OwnFamily):
    add_on = Glm4vAddOn
    reference = Glm4vReference


@with_another_decoder
class TestGlm4vMoe(TestGlm4v):
    reference = Glm4vMoeReference
    test_halves_stay = None  # on a CPU, MLX multiplies by experts in float32 alone
