"""LFM2-VL against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.lfm2_vl_reference import Lfm2VLReference
from support.own_family import OwnFamily, alike

from vision_add_ons.lfm2_vl import Lfm2VLAddOn


@alike
class TestLfm2VL(OwnFamily):
    add_on = Lfm2VLAddOn
    reference = Lfm2VLReference
