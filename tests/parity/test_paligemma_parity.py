"""PaliGemma 1 and 2 against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.own_family import OwnFamily, alike, with_another_decoder
from support.paligemma_reference import PaliGemma2Reference, PaliGemmaReference

from vision_add_ons.paligemma import PaliGemmaAddOn


@alike
class TestPaliGemma(OwnFamily):
    add_on = PaliGemmaAddOn
    reference = PaliGemmaReference


@with_another_decoder
class TestPaliGemma2(OwnFamily):
    add_on = PaliGemmaAddOn
    reference = PaliGemma2Reference
