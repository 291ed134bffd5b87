"""PaliGemma 1 and 2 against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from parity.family_checks import FamilyChecks
from parity.paligemma_reference import PaliGemma2Reference, PaliGemmaReference


class TestPaliGemma(FamilyChecks):
    reference_class = PaliGemmaReference


class TestPaliGemma2(FamilyChecks):
    reference_class = PaliGemma2Reference
