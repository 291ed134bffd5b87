"""Qwen3.5 against transformers, in float32: with experts, and without."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from support.own_family import OwnFamily, with_another_decoder
from support.qwen3_5_reference import Qwen35MoeReference, Qwen35Reference

from engine import load
from vision_add_ons.qwen3_5 import Qwen35AddOn
from vision_add_ons.testing import BOS, Kit, written
from vision_add_ons.testing.state_checks import check_two_engines_on_two_threads


class TestQwen35(OwnFamily):
    add_on = Qwen35AddOn
    reference = Qwen35Reference

    @pytest.mark.parametrize("dialect", ["transformers 5", "transformers 4"])
    def test_tied(self, dialect: str, kit: Kit) -> None:
        """As the small models are."""
        reference = type(kit.reference)(kit.seed, tied=True)
        folder = written(reference, kit.new_folder("tied"), dialect)
        case = kit.case(f"tied, {dialect}")
        prompt = [BOS, *case.words(3), case.image(), *case.words(5), case.image(1), *case.words(9)]
        case.compare(prompt, kit.open(folder), reference, prefill_step_size=32)


@with_another_decoder
class TestQwen35Moe(TestQwen35):
    reference = Qwen35MoeReference
    test_halves_stay = None  # on a CPU, MLX multiplies by experts in float32 alone

    def test_where_float32_ends(self, tmp_path: Path) -> None:
        """Weights of a sweep that found an answer twice as far off as transformers' float32 in its
        own order of summation, which in others is as far off itself."""
        reference = Qwen35MoeReference(7003)
        kit = Kit(Qwen35AddOn, reference, load, tmp_path, 7003)
        try:
            check_two_engines_on_two_threads(kit)
        finally:
            kit.close()
