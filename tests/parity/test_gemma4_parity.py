"""Gemma 4 against transformers, in float32: with a tower, with experts, and unified."""

import pytest

pytest.importorskip("torch")

from support.gemma4_reference import (
    Gemma4MoeReference,
    Gemma4Reference,
    Gemma4UnifiedReference,
)
from support.own_family import OwnFamily, with_another_decoder

from vision_add_ons.gemma4 import Gemma4AddOn, Gemma4UnifiedAddOn


class TestGemma4(OwnFamily):
    add_on = Gemma4AddOn
    reference = Gemma4Reference


@with_another_decoder
class TestGemma4Moe(OwnFamily):
    add_on = Gemma4AddOn
    reference = Gemma4MoeReference
    test_halves_stay = None  # type: ignore[assignment]  # on a CPU, MLX has experts in float32 alone


class TestGemma4Unified(OwnFamily):
    add_on = Gemma4UnifiedAddOn
    reference = Gemma4UnifiedReference
