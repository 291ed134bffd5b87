"""Pixtral against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.own_family import OwnFamily
from support.pixtral_reference import PixtralReference

from vision_add_ons.pixtral import PixtralAddOn


class TestPixtral(OwnFamily):
    add_on = PixtralAddOn
    reference = PixtralReference
