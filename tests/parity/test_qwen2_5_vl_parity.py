"""Qwen2.5-VL against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from parity.family_checks import FamilyChecks
from parity.qwen2_5_vl_reference import Qwen25VLReference


class TestQwen25VL(FamilyChecks):
    reference_class = Qwen25VLReference
