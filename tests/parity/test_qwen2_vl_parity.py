"""Qwen2-VL against transformers, in float32."""

from typing import Any

import pytest

pytest.importorskip("torch")

from support.own_family import OwnFamily, alike
from support.qwen2_vl_reference import SECTIONS, Qwen2VLReference
from support.seeds import SWEEP

from vision_add_ons.qwen2_vl import Qwen2VLAddOn
from vision_add_ons.testing import BOS, Kit, written

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mrope_section": SECTIONS,
}

DIALECTS = ["transformers 5", "transformers 4"]


@alike
class TestQwen2VL(OwnFamily):
    add_on = Qwen2VLAddOn
    reference = Qwen2VLReference

    @pytest.mark.parametrize("dialect", DIALECTS if SWEEP else DIALECTS[-1:])
    @pytest.mark.parametrize(
        "changes",
        [{"tied": True}, {"rope_parameters": YARN}],
        ids=["tied embeddings", "yarn"],
    )
    def test_variants(self, changes: dict[str, Any], dialect: str, kit: Kit) -> None:
        """As the small models are, and as their makers set them up for long contexts."""
        reference = Qwen2VLReference(kit.seed, **changes)
        folder = written(reference, kit.new_folder("variant"), dialect)
        case = kit.case(f"{next(iter(changes))}, {dialect}")
        prompt = [BOS, *case.words(3), case.image(), *case.words(5), case.image(1), *case.words(9)]
        case.compare(prompt, kit.open(folder), reference, prefill_step_size=32)
