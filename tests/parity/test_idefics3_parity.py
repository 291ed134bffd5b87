"""Idefics3 and SmolVLM against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.idefics3_reference import Idefics3Reference, SmolVLMReference
from support.own_family import OwnFamily

from vision_add_ons.idefics3 import Idefics3AddOn


class TestIdefics3(OwnFamily):
    add_on = Idefics3AddOn
    reference = Idefics3Reference


class TestSmolVLM(OwnFamily):
    add_on = Idefics3AddOn
    reference = SmolVLMReference
