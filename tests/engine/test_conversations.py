"""A few random conversations for every family; `scripts/check_conversations.py` has thousands."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from engine_conversations import Simulation
from parity.family_checks import Reference, written
from parity.gemma3_reference import Gemma3Reference
from parity.mistral3_reference import Ministral3Reference, Mistral3Reference
from parity.paligemma_reference import PaliGemma2Reference, PaliGemmaReference
from parity.pixtral_reference import PixtralReference
from parity.qwen2_5_vl_reference import Qwen25VLReference
from parity.qwen2_vl_reference import Qwen2VLReference

FAMILIES = (
    Gemma3Reference,
    PaliGemmaReference,
    PaliGemma2Reference,
    PixtralReference,
    Mistral3Reference,
    Ministral3Reference,
    Qwen2VLReference,
    Qwen25VLReference,
)
BUDGET = 3 * 2**20
"""Bytes: some conversations have to go."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_warm_answers_are_cold_answers(
    family: type[Reference], tmp_path: Path, seed: int, record_property
) -> None:
    reference = family(seed)
    written(reference, tmp_path)
    with Simulation(tmp_path, reference.image_token, seed, BUDGET) as simulation:
        for i in range(30):
            if i == 20:
                simulation.restart()
            simulation.step()
        assert simulation.cached > 0
        assert simulation.reused > 0
    record_property("parity", (family.name, "warm against cold", simulation.worst))
