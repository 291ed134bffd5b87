"""MiniCPM-V 4.6 and 4.7 against transformers, in float32."""

from typing import Any

import pytest

pytest.importorskip("torch")

from support.minicpmv_reference import EXPERTS, TEXT, MiniCPMV46Reference, MiniCPMV47Reference
from support.own_family import OF_THE_ADD_ON_ALONE, OwnFamily, alike, in_sweeps_only
from support.seeds import SWEEP

from vision_add_ons.minicpmv import MiniCPMV46AddOn, MiniCPMV47AddOn
from vision_add_ons.testing import BOS, Kit, written

VARIANTS: dict[str, dict[str, Any]] = {
    "tied embeddings and experts": {"tie_word_embeddings": True, "text": EXPERTS},
    "four times the rows": {"downsample_mode": "4x", "insert_layer_id": 2},
    "neither slices nor numbers": {"processing": {"use_image_id": False, "slice_mode": False}},
}
OF_THE_FIRST_ALONE = (
    "test_variants",
    "test_dialects",
    "test_text_is_mlx_lm_alone",
    "test_quantized",
    "test_halves_stay",
    "test_no_state_is_kept",
    "test_two_engines_on_two_threads",
    "test_prompts_of_conversations",
    "test_texts_mark_nothing",
)
"""What 4.7 does as 4.6 does it."""


@alike
class TestMiniCPMV46(OwnFamily):
    add_on = MiniCPMV46AddOn
    reference = MiniCPMV46Reference

    @pytest.mark.parametrize("dialect", MiniCPMV46Reference.dialects if SWEEP else ["as published"])
    @pytest.mark.parametrize("variant", list(VARIANTS) if SWEEP else list(VARIANTS)[:2])
    def test_variants(self, variant: str, dialect: str, kit: Kit) -> None:
        reference = type(kit.reference)(kit.seed, **VARIANTS[variant])
        folder = written(reference, kit.new_folder("variant"), dialect)
        case = kit.case(f"{variant}, {dialect}")
        prompt = [BOS, *case.words(3), case.image(), *case.words(5), case.image(1), *case.words(9)]
        case.compare(prompt, kit.open(folder), reference, prefill_step_size=32)


@in_sweeps_only(*OF_THE_ADD_ON_ALONE, *OF_THE_FIRST_ALONE)
class TestMiniCPMV47(TestMiniCPMV46):
    add_on = MiniCPMV47AddOn
    reference = MiniCPMV47Reference

    def test_axes_that_are_told(self, kit: Kit) -> None:
        """Other than those of all that is published."""
        rope = {**TEXT["rope_parameters"], "mrope_section": [16, 8, 8]}
        reference = MiniCPMV47Reference(kit.seed, text={"rope_parameters": rope})
        folder = written(reference, kit.new_folder("axes"), "transformers 5")
        case = kit.case("axes")
        prompt = [BOS, *case.words(3), case.image(), *case.words(5)]
        case.compare(prompt, kit.open(folder), reference)
