"""Gemma 3 against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from parity.family_checks import FamilyChecks
from parity.gemma3_reference import Gemma3Reference


class TestGemma3(FamilyChecks):
    reference_class = Gemma3Reference
