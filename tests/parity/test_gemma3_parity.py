"""Gemma 3 against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.gemma3_reference import Gemma3Reference
from support.own_family import OwnFamily

from vision_add_ons.gemma3 import Gemma3AddOn


class TestGemma3(OwnFamily):
    add_on = Gemma3AddOn
    reference = Gemma3Reference
