"""Pixtral against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from parity.family_checks import FamilyChecks
from parity.pixtral_reference import PixtralReference


class TestPixtral(FamilyChecks):
    reference_class = PixtralReference
