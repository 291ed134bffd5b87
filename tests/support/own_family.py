"""Our own families: the conformance kit, and one thing more that it cannot ask for.

The kit knows nothing of how a decoder is built, so it holds text against an engine that loaded the
text half alone. Here text is held against mlx-lm's loop itself.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import stream_generate

from engine import load
from model_kit.config import read_config
from model_kit.decoder import build_decoder
from model_kit.tokenizer import load_tokenizer
from support.seeds import SWEEP
from vision_add_ons.testing import (
    BOS,
    Conformance,
    Kit,
    answer_checks,
    centred,
    config_checks,
    conversation_checks,
    dtype_checks,
    form_checks,
    memory_checks,
    processor_checks,
)
from vision_add_ons.testing.answer_checks import STEPS
from vision_add_ons.testing.conformance import skipping
from vision_add_ons.testing.kit import ANSWER, ask
from vision_add_ons.weights import read_weights

OF_THE_ADD_ON_ALONE = [
    "test_rows",
    "test_rows_follow_the_pixels",
    "test_row_counts",
    "test_pieces",
    "test_memory",
    "test_counts_on_another_thread",
    "test_missing_weights",
    "test_wrong_shapes",
    "test_surplus_weights",
    "test_refused_values",
    "test_unknown_values",
    "test_the_config_is_left_alone",
    "test_pixels",
    "test_absent_settings",
    "test_saved_means",
]
"""What no decoder has a part in."""

OF_ITS_CONFIG = [
    "test_missing_weights",
    "test_wrong_shapes",
    "test_surplus_weights",
    "test_refused_values",
    "test_unknown_values",
    "test_the_config_is_left_alone",
    "test_missing_tokens",
    "test_counts_on_another_thread",
    "test_two_engines_on_two_threads",
    "test_no_state_is_kept",
    "test_nothing_is_changed_in_place",
]
"""What an add-on does alike whatever the sizes are."""

OF_ALL_TOWERS = [
    "test_pieces",
    "test_places",
    "test_counts_that_disagree",
    "test_touching_pictures",
    "test_a_later_picture",
    "test_embeddings",
    "test_text_embeddings",
    "test_texts_mark_nothing",
    "test_absent_settings",
    "test_saved_means",
    "test_halves_stay",
    "test_float32_stays",
    "test_no_vision_half",
    "test_text",
    "test_together",
]
"""What an add-on does alike whatever tower it has."""

OF_ALL_DECODERS = [
    "test_places",
    "test_counts_that_disagree",
    "test_touching_pictures",
    "test_a_later_picture",
    "test_embeddings",
    "test_nothing_is_changed_in_place",
    "test_no_state_is_kept",
    "test_two_engines_on_two_threads",
    "test_missing_tokens",
    "test_prompts",
    "test_prompts_of_conversations",
    "test_texts_mark_nothing",
    "test_together",
    "test_text",
    "test_one_picture",
    "test_float32_stays",
    "test_no_vision_half",
]
"""What an add-on does alike whatever decoder it stands before."""

ELSEWHERE = [
    "test_conversations_in_turns",
    "test_text_is_left_alone",
    "test_two_engines_on_two_threads",
]
"""What one family of each kind has in the test command. Each has `test_a_conversation`, which goes
on from its cache, and has its text held against mlx-lm itself below."""


class OwnFamily(Conformance):
    """All checks, in a sweep. In the test command some of them for one family of each kind, of the
    ways to cut prompts into steps those that cut most and none, and few pictures of drawn sizes."""

    load = staticmethod(load)

    @pytest.mark.parametrize("step", STEPS if SWEEP else (STEPS[0], STEPS[-1]))
    def test_one_picture(self, kit: Kit, step: int) -> None:
        answer_checks.check_one_picture(kit, step)

    @pytest.mark.parametrize("step", STEPS if SWEEP else STEPS[1:2])
    def test_a_later_picture(self, kit: Kit, step: int) -> None:
        answer_checks.check_a_later_picture(kit, step)

    @pytest.mark.parametrize("step", STEPS if SWEEP else STEPS[:1])
    def test_two_pictures(self, kit: Kit, step: int) -> None:
        answer_checks.check_two_pictures(kit, step)

    def test_refused_values(self, kit: Kit) -> None:
        config_checks.check_refused_values(kit, 1 if SWEEP else 3)

    def test_pieces(self, kit: Kit) -> None:
        with skipping():
            memory_checks.check_pieces(kit, memory_checks.DRAWN if SWEEP else 0)

    def test_memory(self, kit: Kit) -> None:
        with skipping():
            memory_checks.check_memory(kit, memory_checks.DRAWN if SWEEP else 0)

    def test_pixels(self, kit: Kit) -> None:
        with skipping():
            processor_checks.check_pixels(kit, processor_checks.DRAWN if SWEEP else 1)

    def test_prompts_of_conversations(self, kit: Kit, record_property: Any) -> None:
        wanted = conversation_checks.COMPARED if SWEEP else 10
        with skipping():
            found = conversation_checks.check_conversations(kit, wanted)
            for template, counts in found.items():
                record_property("prompts", (kit.reference.name, template, *counts))

    @pytest.mark.parametrize("towers", [False, True] if SWEEP else [True])
    def test_quantized(self, kit: Kit, towers: bool) -> None:
        with skipping():
            form_checks.check_quantized(kit, towers)

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16] if SWEEP else [mx.bfloat16])
    def test_halves_stay(self, kit: Kit, dtype: mx.Dtype) -> None:
        dtype_checks.check_halves_stay(kit, dtype)

    def test_text_is_mlx_lm_alone(self, kit: Kit) -> None:
        """Bit for bit what mlx-lm's loop says with the decoder as it is built for text."""
        case = kit.case("text by mlx-lm alone")
        ask(kit.engine, [BOS, case.image(), *case.words(5)], kit.reference)
        prompt = case.words(38)
        answer, ours, end = ask(kit.engine, prompt, kit.reference)
        assert end.cached_tokens == 0
        config = read_config(kit.folder)
        model = build_decoder(kit.folder, config, read_weights(kit.folder))
        tokenizer = load_tokenizer(kit.folder, config)
        alone = list(stream_generate(model, tokenizer, mx.array(prompt), max_tokens=ANSWER))
        assert [r.token for r in alone] == answer
        theirs = centred(np.array([np.array(r.logprobs) for r in alone]))
        assert np.array_equal(ours, theirs)


Tests = TypeVar("Tests", bound=type[OwnFamily])


def in_sweeps_only(*names: str) -> Callable[[Tests], Tests]:
    """Of a class whose add-on another one has tested: these are tested in a sweep only."""

    def left_out(tests: Tests) -> Tests:
        for name in () if SWEEP else names:
            assert hasattr(tests, name)
            setattr(tests, name, None)
        return tests

    return left_out


with_another_decoder = in_sweeps_only(*OF_THE_ADD_ON_ALONE, *OF_ALL_DECODERS, *ELSEWHERE)
"""Of an add-on that has been tested with a decoder."""
with_another_tower = in_sweeps_only(*OF_ITS_CONFIG, *OF_ALL_TOWERS, *ELSEWHERE)
"""Of one that has been tested with a tower, and a processor, of other sizes."""
alike = in_sweeps_only(*ELSEWHERE)
"""Of one whose kind has been tested: of the same caches, positions and masks."""
