"""Whether a chat template begins the answer with a thought, and ends it."""

from typing import Literal

Thought = Literal["none", "open", "closed"]
"""How what a template writes behind the last message ends: without a thought, with one that the
answer goes on with, or with one that is over before it."""


def thought_of(written: str, marks: tuple[str, str]) -> Thought:
    """How a text ends that a template wrote by itself; `marks` begin and end a thought."""
    begins, ends = (written.rfind(mark) for mark in marks)
    if begins > ends:
        return "open"
    return "none" if ends < 0 else "closed"
