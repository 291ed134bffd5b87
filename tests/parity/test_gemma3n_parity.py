"""Gemma 3n against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.gemma3n_reference import Gemma3nReference
from support.own_family import OwnFamily

from vision_add_ons.gemma3n import Gemma3nAddOn


class TestGemma3n(OwnFamily):
    add_on = Gemma3nAddOn
    reference = Gemma3nReference
