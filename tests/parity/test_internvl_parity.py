"""InternVL against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.internvl_reference import (
    InternVLReference,
    LlamaReference,
    Qwen3MoeReference,
    Qwen3Reference,
)
from support.own_family import OwnFamily, alike, with_another_decoder, with_another_tower

from vision_add_ons.internvl import InternVLAddOn


@alike
class TestInternVL(OwnFamily):
    add_on = InternVLAddOn
    reference = InternVLReference


@with_another_tower
class TestInternVLOfQwen3(OwnFamily):
    """With the larger models' tower."""

    add_on = InternVLAddOn
    reference = Qwen3Reference


@with_another_decoder
class TestInternVLOfQwen3Moe(OwnFamily):
    add_on = InternVLAddOn
    reference = Qwen3MoeReference
    test_halves_stay = None  # type: ignore[assignment]  # on a CPU, MLX has experts in float32 alone


@with_another_decoder
class TestInternVLOfLlama(OwnFamily):
    add_on = InternVLAddOn
    reference = LlamaReference
