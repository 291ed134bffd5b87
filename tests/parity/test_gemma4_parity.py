"""Gemma 4 against transformers, in float32: with a tower, with experts, and unified."""

import pytest

pytest.importorskip("torch")

from support.gemma4_reference import (
    Gemma4MoeReference,
    Gemma4Reference,
    Gemma4UnifiedReference,
)
from support.own_family import OwnFamily, alike, in_sweeps_only, with_another_decoder

from vision_add_ons.gemma4 import Gemma4AddOn, Gemma4UnifiedAddOn

ALIKE_IN_ALL_SIZES = (
    "test_prompts",
    "test_prompts_of_conversations",
    "test_texts_mark_nothing",
    "test_missing_tokens",
    "test_places",
    "test_counts_that_disagree",
    "test_no_vision_half",
    "test_two_engines_on_two_threads",
    "test_no_state_is_kept",
    "test_conversations_in_turns",
    "test_touching_pictures",
    "test_a_later_picture",
    "test_text_is_left_alone",
    "test_embeddings",
    "test_text_embeddings",
    "test_nothing_is_changed_in_place",
    "test_float32_stays",
)


@alike
class TestGemma4(OwnFamily):
    add_on = Gemma4AddOn
    reference = Gemma4Reference


@in_sweeps_only(*ALIKE_IN_ALL_SIZES)
@with_another_decoder
class TestGemma4Moe(OwnFamily):
    add_on = Gemma4AddOn
    reference = Gemma4MoeReference
    test_halves_stay = None  # type: ignore[assignment]  # on a CPU, MLX has experts in float32 alone


@in_sweeps_only(*ALIKE_IN_ALL_SIZES)
class TestGemma4Unified(OwnFamily):
    add_on = Gemma4UnifiedAddOn
    reference = Gemma4UnifiedReference
