"""Qwen2.5-VL against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.own_family import OwnFamily, alike
from support.qwen2_5_vl_reference import Qwen25VLReference

from vision_add_ons.qwen2_5_vl import Qwen25VLAddOn


@alike
class TestQwen25VL(OwnFamily):
    add_on = Qwen25VLAddOn
    reference = Qwen25VLReference
