"""Idefics3 and SmolVLM against transformers, in float32."""

from typing import Any

import pytest

pytest.importorskip("torch")

from support.idefics3_reference import Idefics3Reference, SmolVLMReference
from support.own_family import OwnFamily, alike, with_another_tower
from support.seeds import SWEEP

from vision_add_ons.idefics3 import Idefics3AddOn
from vision_add_ons.testing import BOS, Kit, written

DIALECTS = ["transformers 5", "transformers 4"]


@alike
class TestIdefics3(OwnFamily):
    add_on = Idefics3AddOn
    reference = Idefics3Reference

    @pytest.mark.parametrize("dialect", DIALECTS if SWEEP else DIALECTS[-1:])
    @pytest.mark.parametrize(
        "changes",
        [{"tie_word_embeddings": True}, {"scale_factor": 4}, {"splitting": False}],
        ids=["tied embeddings", "a row a tile", "no tiles"],
    )
    def test_variants(self, changes: dict[str, Any], dialect: str, kit: Kit) -> None:
        reference = Idefics3Reference(kit.seed, **changes)
        folder = written(reference, kit.new_folder("variant"), dialect)
        case = kit.case(f"{next(iter(changes))}, {dialect}")
        prompt = [BOS, *case.words(3), case.image(), *case.words(5), case.image(1), *case.words(9)]
        case.compare(prompt, kit.open(folder), reference, prefill_step_size=32)


@with_another_tower
class TestSmolVLM(OwnFamily):
    add_on = Idefics3AddOn
    reference = SmolVLMReference
