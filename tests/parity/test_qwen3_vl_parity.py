"""Qwen3-VL against transformers, in float32: with experts, and without."""

from typing import Any

import pytest

pytest.importorskip("torch")

from support.own_family import OwnFamily, with_another_decoder
from support.qwen3_vl_reference import ROPE, Qwen3VLMoeReference, Qwen3VLReference
from support.seeds import SWEEP

from vision_add_ons.qwen3_vl import Qwen3VLAddOn
from vision_add_ons.testing import BOS, Kit, written

YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

DIALECTS = ["transformers 5", "transformers 4"]


class TestQwen3VL(OwnFamily):
    add_on = Qwen3VLAddOn
    reference = Qwen3VLReference

    @pytest.mark.parametrize("dialect", DIALECTS if SWEEP else DIALECTS[-1:])
    @pytest.mark.parametrize(
        "changes",
        [{"tied": True}, {"rope_parameters": YARN}],
        ids=["tied embeddings", "yarn"],
    )
    def test_variants(self, changes: dict[str, Any], dialect: str, kit: Kit) -> None:
        """As the small models are, and as their makers set them up for long contexts."""
        reference = type(kit.reference)(kit.seed, **changes)
        folder = written(reference, kit.new_folder("variant"), dialect)
        case = kit.case(f"{next(iter(changes))}, {dialect}")
        prompt = [BOS, *case.words(3), case.image(), *case.words(5), case.image(1), *case.words(9)]
        case.compare(prompt, kit.open(folder), reference, prefill_step_size=32)


@with_another_decoder
class TestQwen3VLMoe(TestQwen3VL):
    reference = Qwen3VLMoeReference
    test_halves_stay = None  # on a CPU, MLX multiplies by experts in float32 alone
