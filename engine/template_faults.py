"""Which pictures a chat template has no place for: found by asking it without some of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from engine.messages import Message
from vision_add_ons.errors import ImageCountError, PromptError


def picture_fault(
    messages: Sequence[Message], marks: Sequence[str], build: Callable[[list[Message]], object]
) -> str | None:
    """What to tell of messages that `build` refuses; None if their pictures are not the reason.

    `marks` are the texts that mark a picture's place, the first of them the one to write.
    """
    # A text with such a mark has places of its own, and their number is what the error tells.
    if any(mark in m.text for m in messages if m.role != "assistant" for mark in marks):
        return None

    def fits(taken: Callable[[Message], bool]) -> bool:
        try:
            build([replace(m, pictures=()) if taken(m) else m for m in messages])
        except (PromptError, ImageCountError):
            return False
        return True

    roles = sorted({m.role for m in messages if m.pictures and m.role != "user"})
    if roles and fits(lambda m: m.role != "user"):
        return (
            f"this model's chat template takes no pictures in {' and '.join(roles)} messages; "
            "give them with a user message"
        )
    if fits(lambda m: True):
        instead = f", with {marks[0]} for each picture" if marks else ""
        return (
            "this model's chat template has no place for pictures; load the checkpoint with the "
            "one of the original model (chat_template.jinja), or give the whole prompt as one "
            f"text instead{instead}"
        )
    return None
