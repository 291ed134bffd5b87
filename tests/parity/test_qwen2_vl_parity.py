"""Qwen2-VL against transformers, in float32."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from parity.family_checks import BOS, FamilyChecks, written
from parity.qwen2_vl_reference import SECTIONS, Qwen2VLReference

from engine import load

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mrope_section": SECTIONS,
}


class TestQwen2VL(FamilyChecks):
    reference_class = Qwen2VLReference

    @pytest.mark.parametrize("dialect", ["transformers 5", "transformers 4"])
    @pytest.mark.parametrize(
        "changes",
        [{"tied": True}, {"rope_parameters": YARN}],
        ids=["tied embeddings", "yarn"],
    )
    def test_variants(
        self, changes: dict[str, Any], dialect: str, class_seed: int, tmp_path: Path
    ) -> None:
        """As the small models are, and as their makers set them up for long contexts."""
        reference = Qwen2VLReference(class_seed, **changes)
        prompt = [BOS, *self.words(3), self.photo(), *self.words(5), self.photo(1), *self.words(9)]
        with load(written(reference, tmp_path, dialect)) as engine:
            self.compare(engine, reference, prompt, prefill_step_size=32)
