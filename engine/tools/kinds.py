"""Of which types a parameter may be, by its schema: for forms that write texts as they stand."""

from collections.abc import Mapping
from typing import Any

ALL = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
"""JSON Schema's names for them."""

MOST_STEPS = 64
"""Schemas within a schema that are looked at; beyond, anything is taken to be possible."""

_OF_VALUES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),  # before int, which it is as well
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)


def kinds_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The types that a value may have; `root` is what the schema's references lead into."""
    return _Kinds(root).of(schema)


def reading_type(schema: Any, root: Mapping[str, Any]) -> str:
    """The one type by which mlx-lm's parsers read a value right, which look at no other keyword.

    By "string" it is the text as it stands, by "object" what the text is as JSON, if it is JSON.
    """
    given = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(given, str):
        return given
    return "string" if is_text(schema, root) else "object"


def is_text(schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a value is a text, or null."""
    return "string" in (found := kinds_of(schema, root)) and found <= {"string", "null"}


def texts_of(schema: Any, root: Mapping[str, Any]) -> list[str] | None:
    """The texts that such a value may be, null as "null"; None if they are not listed."""
    return _Kinds(root).texts(schema)


class _Kinds:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root, self._steps = root, 0

    def of(self, schema: Any) -> frozenset[str]:
        self._steps += 1
        if not isinstance(schema, Mapping) or self._steps > MOST_STEPS:
            return ALL
        found = ALL
        given = schema.get("type")
        if given is not None:
            found &= frozenset(given if isinstance(given, list) else [given])
        listed = _listed(schema)
        if listed is not None:
            found &= frozenset(map(_kind, listed))
        for several in (schema.get("anyOf"), schema.get("oneOf")):
            if isinstance(several, list):
                found &= frozenset().union(*map(self.of, several))
        for one in schema.get("allOf") or ():
            found &= self.of(one)
        if isinstance(schema.get("$ref"), str):
            found &= self.of(self._referred(schema["$ref"]))
        return found

    def texts(self, schema: Any) -> list[str] | None:
        self._steps += 1
        if not isinstance(schema, Mapping) or self._steps > MOST_STEPS:
            return None
        listed = _listed(schema)
        if listed is not None:
            return ["null" if one is None else str(one) for one in listed]
        if schema.get("type") == "null":
            return ["null"]
        if isinstance(schema.get("$ref"), str):
            return self.texts(self._referred(schema["$ref"]))
        inner = [self.texts(one) for one in schema.get("allOf") or ()]
        if any(texts is not None for texts in inner):  # each says less than all together
            return next(texts for texts in inner if texts is not None)
        texts: list[str] = []
        for one in schema.get("anyOf") or schema.get("oneOf") or (None,):
            some = self.texts(one)
            if some is None:
                return None
            texts += some
        return texts

    def _referred(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            return None
        place: Any = self._root
        for step in reference[2:].split("/"):
            if not isinstance(place, Mapping):
                return None
            place = place.get(step.replace("~1", "/").replace("~0", "~"))
        return place


def _listed(schema: Mapping[str, Any]) -> list[Any] | None:
    listed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return listed if isinstance(listed, list) else None


def _kind(value: Any) -> str:
    return next((kind for of, kind in _OF_VALUES if isinstance(value, of)), "null")
