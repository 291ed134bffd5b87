"""Running the kit's checks once, to keep what they ask of a reference."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vision_add_ons.base import VisionAddOn
from vision_add_ons.testing import (
    answer_checks,
    conversation_checks,
    form_checks,
    processor_checks,
    prompt_checks,
    row_checks,
    state_checks,
)
from vision_add_ons.testing.engines import Load
from vision_add_ons.testing.kit import Kit, NothingToCheck
from vision_add_ons.testing.reference import Reference
from vision_add_ons.testing.stored import Recorder

ASKING: tuple[tuple[Callable[..., object], tuple[Any, ...]], ...] = (
    (row_checks.check_rows, ()),
    (row_checks.check_row_counts, ()),
    (prompt_checks.check_places, ()),
    (answer_checks.check_text, ()),
    *(
        (check, (step,))
        for check in (
            answer_checks.check_one_picture,
            answer_checks.check_a_later_picture,
            answer_checks.check_two_pictures,
        )
        for step in answer_checks.STEPS
    ),
    (answer_checks.check_touching_pictures, ()),
    (answer_checks.check_a_conversation, ()),
    (answer_checks.check_conversations_in_turns, ()),
    (answer_checks.check_together, ()),
    (state_checks.check_two_engines_on_two_threads, ()),
    (form_checks.check_dialects, ()),
    (form_checks.check_quantized, (False,)),
    (form_checks.check_quantized, (True,)),
    (processor_checks.check_prompts, ()),
    (conversation_checks.check_conversations, ()),
)
"""The checks that ask the reference for what it computes."""


def record(
    reference: Callable[[int], Reference],
    file: str | Path,
    *,
    add_on: type[VisionAddOn],
    load: Load,
    seed: int = 0,
) -> None:
    """Run the checks at one seed and write what they asked of the reference into `file` (.npz).

    `StoredReference(file)` then stands for it where torch is not installed:

        record(LlavaReference, "llava.npz", add_on=LlavaAddOn, load=engine.load)

    The add-on must pass; else the check's AssertionError is raised and nothing is written. Record
    again after a change to the reference, or with another version of the kit.
    """
    recorder = Recorder(reference(seed), seed)
    with TemporaryDirectory() as place:
        kit = Kit(add_on, recorder, load, Path(place), seed)
        try:
            for check, arguments in ASKING:
                with suppress(NothingToCheck):
                    check(kit, *arguments)
        finally:
            kit.close()
    recorder.save(Path(file))
