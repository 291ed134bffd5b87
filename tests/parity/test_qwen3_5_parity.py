"""Qwen3.5 against transformers, in float32: with experts, and without."""

import pytest

pytest.importorskip("torch")

from support.own_family import OwnFamily, with_another_decoder
from support.qwen3_5_reference import Qwen35MoeReference, Qwen35Reference

from vision_add_ons.qwen3_5 import Qwen35AddOn


class TestQwen35(OwnFamily):
    add_on = Qwen35AddOn
    reference = Qwen35Reference


@with_another_decoder
class TestQwen35Moe(TestQwen35):
    reference = Qwen35MoeReference
    test_halves_stay = None  # on a CPU, MLX multiplies by experts in float32 alone
