"""Mistral 3 against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from parity.family_checks import FamilyChecks
from parity.mistral3_reference import Ministral3Reference, Mistral3Reference


class TestMistral3(FamilyChecks):
    reference_class = Mistral3Reference


class TestMinistral3(FamilyChecks):
    reference_class = Ministral3Reference
