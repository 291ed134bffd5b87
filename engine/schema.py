"""What an answer has to be: JSON by a schema, or a text by a pattern, a grammar or a list."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.plain_data import as_plain, check_characters
from vision_add_ons.errors import OptionError

MOST_SOURCE = 2**20
"""Characters that a schema has, at most, written out."""


@dataclass(frozen=True)
class Schema:
    """For `GenerationOptions.schema`; an object takes the place of `Schema.json` of it there, and a
    list of texts that of `Schema.choices`."""

    kind: Literal["json", "regex", "grammar"]
    """What the source is."""
    source: str
    """A JSON schema, written out, a regular expression, or a grammar."""

    def __post_init__(self) -> None:
        if type(self.kind) is not str or self.kind not in ("json", "regex", "grammar"):
            told = self.kind if type(self.kind) is str else type(self.kind).__name__
            raise OptionError(f"a schema's kind is json, regex or grammar, not {told:.60}")
        if not isinstance(self.source, str) or not self.source:
            raise OptionError(f"a schema's {self.kind} must be a text of at least one character")
        check_characters(f"a schema's {self.kind}", self.source)
        if len(self.source) > MOST_SOURCE:
            raise OptionError(
                f"this schema has {len(self.source):,} characters, and at most {MOST_SOURCE:,} are "
                "taken"
            )

    @classmethod
    def json(cls, schema: Mapping[str, Any] | bool | str) -> "Schema":
        """JSON that a JSON Schema allows (`True` allows any), as an object or written out.

        Keywords that would not be held to are refused when the request is made. Objects have
        their properties in the order in which the schema names them.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise OptionError(f"this JSON schema is no JSON: {error}") from error
        if schema is True:
            schema = {}
        if schema is False:
            raise OptionError("the JSON schema `false` allows nothing")
        if not isinstance(schema, Mapping):
            raise OptionError(f"a JSON schema is an object, not {type(schema).__name__}")
        return cls("json", _written("this JSON schema", schema))

    @classmethod
    def regex(cls, pattern: str) -> "Schema":
        """A text that as a whole is what this regular expression matches (the syntax of Rust's
        `regex`: no look-around, no references back)."""
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, lark: str) -> "Schema":
        """A text by a context-free grammar in Lark's notation, from its rule `start` on."""
        return cls("grammar", lark)

    @classmethod
    def choices(cls, texts: Sequence[str]) -> "Schema":
        """One of these texts, whole."""
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
            raise OptionError(f"choices are a list of texts, not {type(texts).__name__}")
        written = _written("these choices", texts)
        if not all(isinstance(text, str) and text for text in json.loads(written) or [None]):
            raise OptionError("choices must be at least one text, each of at least one character")
        # A token of the grammar's own: rules would have the parser try each of them at each step.
        texts = " | ".join(_written("", text) for text in json.loads(written))
        return cls("grammar", f"start: CHOICE\nCHOICE: {texts}")

    @classmethod
    def of(cls, given: Any) -> "Schema":
        """What `GenerationOptions.schema` takes."""
        if isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return cls.json(given)
        if isinstance(given, Sequence) and not isinstance(given, str | bytes):
            return cls.choices(given)
        raise OptionError(
            "schema must be a JSON schema as an object, a list of choices, or a Schema, not "
            f"{type(given).__name__}"
        )


def _written(name: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=as_plain)
    except Exception as error:  # whatever others' mappings and sequences raise
        told = f"{type(error).__name__}: {error}"
        raise OptionError(f"{name} cannot be written as JSON ({told:.200})") from error
