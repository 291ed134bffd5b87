"""MiniCPM-V 4.6 and 4.7 against transformers, in float32."""

from typing import Any

import pytest

pytest.importorskip("torch")

from support.minicpmv_reference import EXPERTS, MiniCPMV46Reference, MiniCPMV47Reference
from support.own_family import OwnFamily, with_another_decoder
from support.seeds import SWEEP

from vision_add_ons.minicpmv import MiniCPMV46AddOn, MiniCPMV47AddOn
from vision_add_ons.testing import BOS, Kit, written


class TestMiniCPMV46(OwnFamily):
    add_on = MiniCPMV46AddOn
    reference = MiniCPMV46Reference

    @pytest.mark.parametrize(
        "dialect", ["as published", *(("transformers 5", "mlx-vlm") if SWEEP else ())]
    )
    @pytest.mark.parametrize(
        "changes",
        [
            {"tie_word_embeddings": True, "text": EXPERTS},
            {"downsample_mode": "4x", "insert_layer_id": 2},
            {"processing": {"use_image_id": False, "slice_mode": False}, "insert_layer_id": 0},
        ],
        ids=["tied embeddings and experts", "four times the rows", "neither slices nor numbers"],
    )
    def test_variants(self, changes: dict[str, Any], dialect: str, kit: Kit) -> None:
        reference = type(kit.reference)(kit.seed, **changes)
        folder = written(reference, kit.new_folder("variant"), dialect)
        case = kit.case(f"{next(iter(changes))}, {dialect}")
        prompt = [BOS, *case.words(3), case.image(), *case.words(5), case.image(1), *case.words(9)]
        case.compare(prompt, kit.open(folder), reference, prefill_step_size=32)


@with_another_decoder
class TestMiniCPMV47(TestMiniCPMV46):
    add_on = MiniCPMV47AddOn
    reference = MiniCPMV47Reference
