"""What an answer is to be: a text, any JSON object, or JSON by a schema."""

from typing import Any, Literal

from pydantic import Field

from engine.schema import Schema
from engine.server.values import Strict

FORMATS = {
    "response_format": ("text", "json_object", "json_schema"),
    "format": ("text", "json_object", "json_schema"),
}
"""Fields that are one of several objects, and the types that these name."""


class TextFormat(Strict):
    type: Literal["text"]


class ObjectFormat(Strict):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    name: str = Field(max_length=64, description="Of no effect.")
    description: str | None = Field(None, description="Of no effect.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON Schema; without one, any object."
    )
    strict: bool | None = Field(
        None, description="Of no effect: answers are held to it in any case."
    )


def schema_of(asked: ObjectFormat | NamedSchema) -> Schema | dict[str, Any]:
    """What an answer in such a format is held to. Raises `OptionError`."""
    if isinstance(asked, ObjectFormat) or asked.schema_ is None:
        return {"type": "object"}
    return Schema.json(asked.schema_ or True)
