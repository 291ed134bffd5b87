"""Schemas that would end the process, or never end, are refused; what people write is not."""

from typing import Any

import pytest

from engine import Engine, GenerationOptions, OptionError, Schema
from engine.decoding.schema_bounds import MOST_DEPTH, MOST_PATTERNS, check_bounds

JSON = dict[str, Any]


def chain(links: int, link: Any, ending: str = "") -> JSON:
    """Definitions of which each refers to the next; the last one to `ending`, or to nothing."""
    names = [f"#/$defs/d{i}" for i in range(1, links)] + ([ending] if ending else [])
    definitions: JSON = {f"d{i}": link(name) for i, name in enumerate(names)}
    definitions.setdefault(f"d{links - 1}", {"type": "string"})
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


def in_object(name: str) -> JSON:
    return {"type": "object", "properties": {"a": {"$ref": name}}}


def in_array(name: str) -> JSON:
    return {"type": "array", "items": {"$ref": name}}


def by_anchors(links: int) -> JSON:
    definitions: JSON = {
        f"d{i}": {"$anchor": f"a{i}", "items": {"$ref": f"#a{i + 1}"}} for i in range(links)
    }
    definitions["last"] = {"$anchor": f"a{links}", "type": "string"}
    return {"$defs": definitions, "$ref": "#a0"}


def by_ids(links: int) -> JSON:
    """Each relative to where it stands, which the bounds do not follow."""
    definitions: JSON = {
        f"d{i}": {"$id": f"http://it.example/{i}", "items": {"$ref": f"{i + 1}"}}
        for i in range(links)
    }
    return {"$defs": definitions, "$ref": "http://it.example/0"}


def rules(count: int) -> Schema:
    lines = [f'r{i}: r{i + 1} "a"' for i in range(count)]
    return Schema.grammar("\n".join(["start: r0", *lines, f'r{count}: "x"']))


def patterns(count: int) -> Schema:
    """Patterns of two lines each, between whose ends what refers to others only seems to be one."""
    lines = [f"r{i}: /x\ny/ r{i + 1} /z/" for i in range(count)]
    return Schema.grammar("\n".join(["start: r0", *lines, f'r{count}: "x"']))


def in_tools(schema: JSON) -> Schema:
    return Schema.grammar(f"start: it\nit: %json {Schema.json(schema).source}")


ENDLESS: list[tuple[Any, str]] = [
    (chain(900, in_object), "nested deeper"),
    (chain(900, in_object, "#/$defs/d0"), "nested deeper"),
    (chain(1000, in_array), "nested deeper"),
    (chain(20_000, lambda name: {"$ref": name}), "nested deeper"),
    (chain(500, lambda name: {"$ref": name.replace("$", "%24")}), "nested deeper"),
    (by_anchors(1000), "nested deeper"),
    (by_ids(1000), "nested deeper"),
    (in_tools(chain(900, in_object)), "nested deeper"),
    (rules(3000), "nested deeper"),
    (Schema("json", '{"items": ' * 50_000 + "{}" + "}" * 50_000), "nested deeper"),
    ({"allOf": [{"pattern": f"x{i}.*y"} for i in range(24)]}, "^schema: pattern: 24 patterns"),
    (
        chain(24, lambda name: {"pattern": f"x{name[-1]}.*y", "allOf": [{"$ref": name}]}),
        "^schema: pattern: 23 patterns",
    ),
    ({"type": "integer", "multipleOf": 1_000_003}, "^schema: multipleOf"),
    ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "^schema: multipleOf"),
    ({"properties": {f"p{i}": True for i in range(9000)}}, "^schema: properties: it has 9,000"),
    (patterns(20_000), "nested deeper"),
    (Schema("json", "{"), "no JSON"),
    (Schema.grammar('{"grammars": []}'), "Lark's notation"),
]


@pytest.mark.parametrize(("given", "saying"), ENDLESS)
def test_what_would_end_the_process_or_never_end(given: Any, saying: str) -> None:
    with pytest.raises(OptionError, match=saying):
        check_bounds(Schema.of(given))


def test_references_to_all_that_is_nested() -> None:
    """Each is a schema of its own, and holds those below it."""
    inner: JSON = {"anyOf": [{"const": i} for i in range(5000)]}
    path = "#"
    references = []
    for _ in range(100):
        inner = {"items": inner}
        path += "/items"
        references.append({"$ref": path})
    schema = {**inner, "anyOf": references}
    with pytest.raises(OptionError, match=r"too many parts|nested deeper"):
        check_bounds(Schema.json(schema))


TREE: JSON = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "format": "uuid"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "shape": {"anyOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}]},
            },
        },
        "circle": {"properties": {"radius": {"multipleOf": 0.01}, "in": {"$ref": "#"}}},
        "square": {"properties": {"side": {"multipleOf": 1000}, "unit": {"pattern": "^[a-z]+$"}}},
    },
    "$ref": "#/$defs/node",
    "examples": [{"id": "5", "pattern": "x"}],
}


@pytest.mark.parametrize(
    "given",
    [
        TREE,
        in_tools(TREE),
        chain(MOST_DEPTH // 3 - 2, in_object),
        {"allOf": [{"pattern": f"x{i}"} for i in range(MOST_PATTERNS)]},
        {"properties": {f"p{i}": {"type": "string", "pattern": f"^{i}$"} for i in range(2000)}},
        {"properties": {str(n): {"multipleOf": n} for n in (7, 11, 13, 17, 19, 23, 0.5, 60)}},
        {"$ref": "#/nowhere"},  # others say so
        {"anyOf": [{}], "$ref": "#/anyOf/" + "1" * 5000},
        {"anyOf": [{"$ref": "#/anyOf/0"}] * 45_000},
        Schema.grammar('start: %json {"multipleOf": 1e999} | %json {"multipleOf": NaN}'),
        *(Schema("json", source) for source in ("5", "1.5", "null", "[1, {}]", '"x"')),
        True,
        rules(100),
        patterns(100),
        *(
            Schema.grammar(piece * 100_000)
            for piece in ("a", "a.", '\\"', "\\/", '"\\"', "/\\/", "?!")
        ),
        Schema.grammar('start: "%json {" /%json/ // %json {'),
        ["a: b", 'b: "', "%json {]"],
        Schema.regex("(a|b)*a(a|b){200}"),
    ],
)
def test_what_is_taken(given: Any) -> None:
    check_bounds(Schema.json(given) if given is True else Schema.of(given))


def test_by_an_engine(letters: Engine) -> None:
    """It refuses, and goes on."""
    for given in (chain(900, in_object), {"allOf": [{"pattern": f"x{i}.*y"} for i in range(24)]}):
        with pytest.raises(OptionError, match=r"^schema: "):
            letters.generate("Hello", options=GenerationOptions(schema=given))
    choices = [f"number {i}" for i in range(20_000)]
    end = letters.generate("Hello", options=GenerationOptions(schema=choices)).result()
    assert end.answer in choices


def test_what_is_said_is_short(letters: Engine) -> None:
    for pattern in ("(" * 100_000, "a" * 1000 + "(?=b)"):
        with pytest.raises(OptionError, match=r"^schema: ") as told:
            letters.generate("Hello", options=GenerationOptions(schema=Schema.regex(pattern)))
        assert len(str(told.value)) < 400
