"""The checks as tests of pytest."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import mlx.core as mx
import pytest

from vision_add_ons.base import VisionAddOn
from vision_add_ons.testing import (
    answer_checks,
    config_checks,
    conversation_checks,
    dtype_checks,
    form_checks,
    memory_checks,
    processor_checks,
    prompt_checks,
    row_checks,
    seam_checks,
    state_checks,
    text_checks,
    token_checks,
    weight_checks,
)
from vision_add_ons.testing.engines import Load
from vision_add_ons.testing.kit import Kit, NothingToCheck
from vision_add_ons.testing.reference import Reference

STEPS = pytest.mark.parametrize("step", answer_checks.STEPS)


@contextmanager
def skipping() -> Iterator[None]:
    """Skip the test if the reference brings nothing for it."""
    try:
        yield
    except NothingToCheck as reason:
        pytest.skip(str(reason))


class Conformance:
    """Derive a test class from this, and a family's add-on is checked.

    `load` is the engine's: `load = staticmethod(engine.load)`. What is random is the same in each
    run; the environment variable SIGHTLINE_SEED, a number from 0, asks for other weights, words and
    pictures. Measured errors are recorded as the property "parity" of the test, a tuple of family,
    case and relative error; conversations whose prompts were compared as the property "prompts", a
    tuple of family, template, and how many were compared and how many refused.
    """

    add_on: ClassVar[type[VisionAddOn]]
    """The class that is checked."""
    reference: ClassVar[Callable[[int], Reference] | Reference]
    """A class derived from `Reference`, or one that is ready and has a `seed`."""
    load: ClassVar[Load]
    seed: ClassVar[int] = 0
    """Of the weights and of all else that is random, where SIGHTLINE_SEED says nothing."""

    @classmethod
    def seed_of_run(cls) -> int:
        """SIGHTLINE_SEED, or `seed` where that is not set."""
        return int(os.environ.get("SIGHTLINE_SEED") or cls.seed)

    @pytest.fixture(scope="class")
    @classmethod
    def class_kit(cls, tmp_path_factory: Any) -> Iterator[Kit]:
        """The checkpoint, the reference and the engine that this class's tests share."""
        given, seed = cls.reference, cls.seed_of_run()
        if isinstance(given, Reference) and given.seed is not None:
            seed = given.seed
        reference = given if isinstance(given, Reference) else given(seed)
        place = tmp_path_factory.mktemp(cls.__name__)
        kit = Kit(cls.add_on, reference, cls.load, place, seed)
        yield kit
        kit.close()

    @pytest.fixture
    def kit(self, class_kit: Kit, record_property: Any) -> Kit:
        """The same for one test, whose measured errors become its properties."""
        print(f"seed of {class_kit.reference.name}: {class_kit.seed}")

        def note(case: str, what: str, error: float) -> None:
            record_property("parity", (class_kit.reference.name, f"{case}, {what}", error))

        class_kit.note = note
        return class_kit

    # --- rows and their places --------------------------------------------------------------------

    def test_rows(self, kit: Kit) -> None:
        row_checks.check_rows(kit)

    def test_rows_follow_the_pixels(self, kit: Kit) -> None:
        row_checks.check_rows_follow_the_pixels(kit)

    def test_row_counts(self, kit: Kit) -> None:
        row_checks.check_row_counts(kit)

    def test_pieces(self, kit: Kit) -> None:
        with skipping():
            memory_checks.check_pieces(kit)

    def test_memory(self, kit: Kit) -> None:
        with skipping():
            memory_checks.check_memory(kit)

    def test_places(self, kit: Kit) -> None:
        prompt_checks.check_places(kit)

    def test_counts_that_disagree(self, kit: Kit) -> None:
        prompt_checks.check_counts_that_disagree(kit)

    # --- answers ----------------------------------------------------------------------------------

    def test_text(self, kit: Kit) -> None:
        answer_checks.check_text(kit)

    def test_together(self, kit: Kit) -> None:
        answer_checks.check_together(kit)

    @STEPS
    def test_one_picture(self, kit: Kit, step: int) -> None:
        answer_checks.check_one_picture(kit, step)

    @STEPS
    def test_a_later_picture(self, kit: Kit, step: int) -> None:
        answer_checks.check_a_later_picture(kit, step)

    @STEPS
    def test_two_pictures(self, kit: Kit, step: int) -> None:
        answer_checks.check_two_pictures(kit, step)

    def test_touching_pictures(self, kit: Kit) -> None:
        with skipping():
            answer_checks.check_touching_pictures(kit)

    def test_a_conversation(self, kit: Kit) -> None:
        answer_checks.check_a_conversation(kit)

    def test_conversations_in_turns(self, kit: Kit) -> None:
        answer_checks.check_conversations_in_turns(kit)

    def test_text_is_left_alone(self, kit: Kit) -> None:
        text_checks.check_text_is_left_alone(kit)

    # --- the seam, state and dtypes ---------------------------------------------------------------

    def test_text_embeddings(self, kit: Kit) -> None:
        seam_checks.check_text_embeddings(kit)

    def test_embeddings(self, kit: Kit) -> None:
        seam_checks.check_embeddings(kit)

    def test_nothing_is_changed_in_place(self, kit: Kit) -> None:
        seam_checks.check_nothing_is_changed_in_place(kit)

    def test_no_state_is_kept(self, kit: Kit) -> None:
        state_checks.check_no_state_is_kept(kit)

    def test_counts_on_another_thread(self, kit: Kit) -> None:
        state_checks.check_a_picture_of_another_thread(kit)

    def test_two_engines_on_two_threads(self, kit: Kit) -> None:
        state_checks.check_two_engines_on_two_threads(kit)

    def test_float32_stays(self, kit: Kit) -> None:
        dtype_checks.check_float32_stays(kit)

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
    def test_halves_stay(self, kit: Kit, dtype: mx.Dtype) -> None:
        dtype_checks.check_halves_stay(kit, dtype)

    # --- what of a checkpoint is read -------------------------------------------------------------

    def test_missing_weights(self, kit: Kit) -> None:
        weight_checks.check_missing_weights(kit)

    def test_no_vision_half(self, kit: Kit) -> None:
        weight_checks.check_no_vision_half(kit)

    def test_wrong_shapes(self, kit: Kit) -> None:
        weight_checks.check_wrong_shapes(kit)

    def test_surplus_weights(self, kit: Kit) -> None:
        weight_checks.check_surplus_weights(kit)

    def test_refused_values(self, kit: Kit) -> None:
        config_checks.check_refused_values(kit)

    def test_unknown_values(self, kit: Kit) -> None:
        config_checks.check_unknown_values(kit)

    def test_the_config_is_left_alone(self, kit: Kit) -> None:
        config_checks.check_the_config_is_left_alone(kit)

    def test_missing_tokens(self, kit: Kit) -> None:
        with skipping():
            token_checks.check_missing_tokens(kit)

    def test_dialects(self, kit: Kit) -> None:
        form_checks.check_dialects(kit)

    @pytest.mark.parametrize("towers", [False, True], ids=["decoder", "decoder and towers"])
    def test_quantized(self, kit: Kit, towers: bool) -> None:
        with skipping():
            form_checks.check_quantized(kit, towers)

    # --- the family's own processor ---------------------------------------------------------------

    def test_pixels(self, kit: Kit) -> None:
        with skipping():
            processor_checks.check_pixels(kit)

    def test_absent_settings(self, kit: Kit) -> None:
        with skipping():
            processor_checks.check_absent_settings(kit)

    def test_saved_means(self, kit: Kit) -> None:
        processor_checks.check_saved_means(kit)

    def test_prompts(self, kit: Kit) -> None:
        with skipping():
            processor_checks.check_prompts(kit)

    def test_prompts_of_conversations(self, kit: Kit, record_property: Any) -> None:
        with skipping():
            for template, counts in conversation_checks.check_conversations(kit).items():
                record_property("prompts", (kit.reference.name, template, *counts))

    def test_texts_mark_nothing(self, kit: Kit) -> None:
        with skipping():
            processor_checks.check_texts_mark_nothing(kit)
