"""The items of which a conversation is made, as a request's `input` has them."""

import base64
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from engine.server.parts import Part
from engine.server.values import Few, Ignored, Strict

Content = Annotated[str | Annotated[list[Part], Field(fail_fast=True)], Few]


class _Item(Strict):
    id: Ignored = None
    status: Ignored = None


class MessageItem(_Item):
    """What somebody says."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"] = Field(
        description='"developer" is another word for "system".'
    )
    content: Content
    phase: Ignored = None


class CallItem(_Item):
    """A call of a tool in an earlier answer."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=128)
    name: str
    arguments: str = Field(description="A JSON object, written out.")
    namespace: str | None = Field(None, max_length=64)
    caller: Ignored = None


class OutputItem(_Item):
    """What came of a call: a text, or parts with pictures."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=128)
    output: Content
    name: Ignored = None
    namespace: Ignored = None
    caller: Ignored = None


class SummaryText(Strict):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Strict):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(_Item):
    """What an earlier answer's model thought, for chat templates that go on from it."""

    type: Literal["reasoning"]
    summary: Annotated[list[SummaryText], Field(fail_fast=True), Few] = Field([])
    content: Annotated[list[ReasoningText], Field(fail_fast=True), Few] | None = None
    encrypted_content: str | None = Field(
        None, description="Read where there is nothing else; only what this server made."
    )

    @property
    def thought(self) -> str:
        """Raises `ValueError` where all that there is was sealed by somebody else."""
        if self.content:
            return "".join(part.text for part in self.content)
        if self.summary:
            return "\n\n".join(part.text for part in self.summary)
        return opened(self.encrypted_content) if self.encrypted_content else ""


class ReferenceItem(Strict):
    """An item of an earlier response that is kept here."""

    type: Literal["item_reference"] = "item_reference"
    id: str = Field(max_length=128)


def _kind(item: Any) -> str | None:
    """The tag of what an item is meant to be."""
    if not isinstance(item, dict):
        return _TAGS.get(getattr(item, "type", None))
    kind = item.get("type")
    if kind is None:
        kind = "item_reference" if set(item) <= {"type", "id"} and item else "message"
    return _TAGS.get(kind) if isinstance(kind, str) else None


def _known(item: Any) -> Any:
    """Names a kind that there is not, before its fields are complained about."""
    if isinstance(item, dict) and isinstance(kind := item.get("type"), str) and kind not in _TAGS:
        shown = kind[:60].encode(errors="replace").decode()
        message = "this server knows no items of the type '{kind}'"
        raise PydanticCustomError("unknown_kind", message, {"kind": shown})
    return item


_TAGS: dict[Any, str] = {
    kind: f"<{kind}>"
    for kind in ("message", "function_call", "function_call_output", "reasoning", "item_reference")
}
"""In the path of an error, these are left out."""

Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[OutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ReferenceItem, Tag("<item_reference>")],
    Discriminator(
        _kind,
        custom_error_type="no_item",
        custom_error_message="must be an item: a message, reasoning, a function_call or its output",
    ),
    BeforeValidator(_known),
]

_SEAL = b"sightline:"


def sealed(thought: str) -> str:
    """A thought as clients send it back that keep nothing else of it: nothing is secret in it,
    but `encrypted_content` is to be no text that anybody reads."""
    return base64.b64encode(_SEAL + thought.encode("utf-8", "replace")).decode()


def opened(content: str) -> str:
    """What was `sealed`. Raises `ValueError` for what was not."""
    try:
        data = base64.b64decode(content, validate=True)
        if data.startswith(_SEAL):
            return data[len(_SEAL) :].decode()
    except ValueError:
        pass
    raise ValueError("encrypted_content was made by another service, and cannot be read here")
