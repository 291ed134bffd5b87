"""Mistral 3 against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.mistral3_reference import Ministral3Reference, Mistral3Reference
from support.own_family import OwnFamily, alike, with_another_decoder

from vision_add_ons.mistral3 import Mistral3AddOn


@alike
class TestMistral3(OwnFamily):
    add_on = Mistral3AddOn
    reference = Mistral3Reference


@with_another_decoder
class TestMinistral3(OwnFamily):
    add_on = Mistral3AddOn
    reference = Ministral3Reference
