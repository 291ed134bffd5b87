"""Random JSON schemas of the keywords that answers are held to."""

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "x y", "\u00e9", "count"])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 99), st.text('ab \u00e9"', max_size=4)
)


def _between(lowest: int, highest: int, low: str, high: str) -> st.SearchStrategy[dict[str, int]]:
    """Two bounds in their order, or one of them, or none."""
    pairs = st.tuples(st.integers(lowest, highest), st.integers(lowest, highest)).map(sorted)
    return st.tuples(pairs, st.booleans(), st.booleans()).map(
        lambda drawn: {
            **({low: drawn[0][0]} if drawn[1] else {}),
            **({high: drawn[0][1]} if drawn[2] else {}),
        }
    )


STRINGS = st.one_of(
    st.just({"type": "string", "maxLength": 6}),
    _between(0, 5, "minLength", "maxLength").map(lambda more: {"type": "string"} | more),
    st.sampled_from(["^[a-c]{2,4}$", "^x+y?$", "^(yes|no)$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email"]).map(
        lambda form: {"type": "string", "format": form}
    ),
    st.sampled_from(["^a", "b$", "[0-9]", "a.*b"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 9}
    ),
)
NUMBERS = st.one_of(
    _between(-300, 300, "minimum", "maximum").map(lambda more: {"type": "integer"} | more),
    _between(-3, 3, "minimum", "maximum").map(lambda more: {"type": "number"} | more),
    _between(-50, 50, "exclusiveMinimum", "exclusiveMaximum").map(
        lambda more: {"type": "integer"} | more
    ),
    st.integers(2, 9).map(lambda n: {"type": "integer", "multipleOf": n}),
    st.just({"type": "number", "multipleOf": 0.5, "minimum": -20, "maximum": 20}),
)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    STRINGS,
    NUMBERS,
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(SCALARS, min_size=1, max_size=4, unique_by=repr).map(lambda enum: {"enum": enum}),
    SCALARS.map(lambda value: {"const": value}),
    st.lists(SCALARS, max_size=2).map(lambda value: {"const": {"a": value}}),
    st.just({"type": ["integer", "null"]}),
    st.just({"type": ["boolean", "string"], "maxLength": 3}),
)


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=3))
    required = [name for name in properties if draw(st.booleans())]
    made: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if draw(st.booleans()):
        made["additionalProperties"] = draw(st.one_of(st.just(False), inner))
    if draw(st.integers(0, 4)) == 0:
        made["patternProperties"] = {"^z[0-9]$": draw(inner)}
    return made


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    bounds = draw(_between(0, 3, "minItems", "maxItems"))
    made: dict[str, Any] = {"type": "array", "items": draw(inner), **bounds}
    if draw(st.booleans()):
        made["prefixItems"] = [draw(inner)]
    return made


def _wider(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    either = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    both = st.tuples(_objects(inner), _objects(inner)).map(lambda parts: {"allOf": list(parts)})
    return st.one_of(_objects(inner), _arrays(inner), either, both)


_INNER = st.recursive(LEAVES, _wider, max_leaves=6)
_NAMED = _INNER.map(
    lambda part: {
        "$defs": {"it": part},
        "type": "array",
        "items": {"$ref": "#/$defs/it"},
        "maxItems": 2,
    }
)
_NODE = _INNER.map(
    lambda part: {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"is": part, "next": {"$ref": "#/$defs/node"}},
                "required": ["is"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }
)
SCHEMAS = st.one_of(_INNER, _INNER, _NAMED, _NODE)

_TEXTS = st.sampled_from(["a", "bc", "[0-9]", "[a-f]", r"\.", "(x|yz)", " ", "-", "[^ab]"])
_TIMES = st.sampled_from(["", "", "?", "{2}", "{1,3}", "{0,4}", "+", "*"])
_PIECES = st.tuples(_TEXTS, _TIMES).map("".join)
_ROWS = st.lists(_PIECES, min_size=1, max_size=5).map("".join)
PATTERNS = st.lists(_ROWS, min_size=1, max_size=3).map("|".join)
"""Regular expressions that Python's `re` and Rust's `regex` read alike, of texts in ASCII."""

CHOICES = st.lists(
    st.text('abc \n"\\/{|\u00e9\U0001f600', min_size=1, max_size=12), min_size=1, max_size=9
)
