"""Gemma 3n against transformers, in float32."""

import pytest

pytest.importorskip("torch")

from support.gemma3n_reference import BEGIN, END, END_SOUND, Gemma3nReference
from support.own_family import OwnFamily, alike

from vision_add_ons.gemma3n import Gemma3nAddOn
from vision_add_ons.testing import BOS, Kit


@alike
class TestGemma3n(OwnFamily):
    add_on = Gemma3nAddOn
    reference = Gemma3nReference

    def test_ids_of_other_modalities(self, kit: Kit) -> None:
        """Among text, and around a picture: they are looked up among the modality's embeddings."""
        case = kit.case("ids of other modalities")
        text = [BOS, *case.words(3), END, *case.words(30), END_SOUND, *case.words(5)]
        case.compare(text, prefill_step_size=7)
        case.compare([*text, BEGIN, case.image(), END, *case.words(4)])
