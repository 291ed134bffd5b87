"""Whether a chat template begins the answer with a thought, and ends it."""

from collections.abc import Mapping
from typing import Any, Literal

from vision_add_ons.errors import OptionError

Thought = Literal["none", "open", "closed"]
"""How what a template writes behind the last message ends: without a thought, with one that the
answer goes on with, or with one that is over before it."""


SWITCHES = ("enable_thinking", "thinking")
"""The names of the variable by which templates are told whether to have an answer think."""


class Switch:
    """Tells a chat template whether an answer is to begin with a thought."""

    def __init__(self, variables: frozenset[str], thinks: bool) -> None:
        """`variables` are the names that the template knows; `thinks`: the model has marks for
        thoughts."""
        self._name = next((name for name in SWITCHES if name in variables), None)
        self._thinks = thinks

    def about(self, marks: tuple[str, str] | None) -> str:
        """In one line, for a report; `marks` begin and end a thought, where it has some."""
        if not self._thinks:
            return "none: no marks of thoughts are known"
        where = "apart from the answer" if marks is None else f"between {marks[0]} and {marks[1]}"
        return f"{where}, {f'switched by {self._name}' if self._name else 'without a switch'}"

    def told(
        self, thinking: bool | None, variables: Mapping[str, Any] | None
    ) -> Mapping[str, Any] | None:
        """`variables`, and the switch as `thinking` wants it. Raises `OptionError`."""
        if thinking is None:
            return variables
        if thinking and not self._thinks:
            raise OptionError("thinking: this model knows no thoughts; leave it out, or give False")
        if self._name is None:
            return variables
        given = (variables or {}).get(self._name, thinking)
        if given is not thinking:
            raise OptionError(
                f"thinking is {thinking}, but template has {self._name} as {given!r:.40}; give one"
            )
        return {**(variables or {}), self._name: thinking}

    def check(self, thinking: bool | None, thought: Thought) -> None:
        """Raises `OptionError` if a prompt that ends so is not what was wanted."""
        if thinking and thought != "open" and self._name is None:
            raise OptionError(
                "thinking: this model's chat template has no switch for it, and asks for no thought"
            )
        if thinking is False and thought == "open":
            raise OptionError(
                "thinking: this model's chat template begins every answer with a thought; "
                "max_thinking_tokens=0 ends it at once"
            )


def thought_of(written: str, marks: tuple[str, str]) -> Thought:
    """How a text ends that a template wrote by itself; `marks` begin and end a thought."""
    begins, ends = (written.rfind(mark) for mark in marks)
    if begins > ends:
        return "open"
    return "none" if ends < 0 else "closed"
