"""Damages of a checkpoint's JSON files, and which changes of a value leave a checkpoint valid."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.damages.basics import (
    ANOTHER,
    HARMLESS,
    TENSORS,
    TYPED,
    Damage,
    Undamaged,
    damage_of,
    replace,
)
from support.damages.header import UNUSED

FieldPath = tuple[str | int, ...]
ABSENT = object()
MANY = 20
"""Of larger objects (a vocabulary) only some entries are taken."""

JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 10**6, 10**9, 2**31, 10**12, 2**63, 10**30),
    *(0.0, 0.5, -1.5, 1e-30, 1e30, math.nan, math.inf, -math.inf),
    *("x", "", "1", "null", "../../etc/passwd", "\ud800", "x" * 10_000),
    *([], [1], [None], [[]], {}, {"a": 1}, {"": {}}),
]


def fields(value: Any, rng: random.Random, path: FieldPath = ()) -> Iterator[FieldPath]:
    """The paths of all values in a JSON document but the document itself."""
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for key, one in rng.sample(inner, MANY) if len(inner) > MANY * 2 else inner:
        yield (*path, key)
        yield from fields(one, rng, (*path, key))


def value_damage(file: Path, path: FieldPath, rng: random.Random) -> Damage:
    """The value at `path` replaced, removed or renamed."""
    old = file.read_bytes()
    document = json.loads(old)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    name, value = path[-1], parent[path[-1]]
    chosen = rng.random()
    if chosen < 0.08:
        del parent[name]
        what = "removed"
    elif chosen < 0.16 and isinstance(parent, dict):
        parent[f"{name}x"] = parent.pop(name)
        what = "renamed"
    else:
        parent[name] = rng.choice(JUNK) if chosen < 0.7 else _near(value, rng)
        what = f"{parent[name]!r:.60} for {value!r:.60}"
    new = json.dumps(document).encode()
    if json.loads(new) == json.loads(old):
        raise Undamaged
    replace(file, new)
    return changed(file, f"{'.'.join(map(str, path))}: {what}", old, new)


def _near(value: Any, rng: random.Random) -> Any:
    """Another value that is not far from this one."""
    nested: Any = value
    for _ in range(rng.choice([1, 2, 300])):
        nested = [nested]
    near = [nested, {"a": value}, str(value)]
    if isinstance(value, bool):
        near += [not value] * 3
    elif isinstance(value, int | float):
        near += [-value, value + 1, value - 1, value * 2, value / 2, float(value), value * 10**6]
        near += [value // 2 if isinstance(value, int) else value * 10]
    elif isinstance(value, str):
        near += [value[:-1], value + "x", value.upper(), value[::-1]]
    elif isinstance(value, list):
        near += [value[:-1], value * 2, value[::-1], [*value, None]]
    elif isinstance(value, dict):
        near += [list(value), dict(list(value.items())[:-1])]
    return rng.choice(near)


def text_damage(file: Path, rng: random.Random) -> Damage:
    """The document as a text: what no JSON library would write, and what some readers take."""
    old = file.read_bytes()
    document = json.loads(old)
    name = rng.choice(list(document))
    twin = json.dumps({name: rng.choice(JUNK)})[1:-1].encode()
    body = old.strip()
    what, new = rng.choice(
        [
            ("a comma at its end", body[:-1] + b",}"),
            ("a comment", b"// a comment\n" + body),
            ("single quotes", body.replace(b'"', b"'")),
            ("a byte order mark", b"\xef\xbb\xbf" + body),
            ("UTF-16", body.decode().encode("utf-16")),
            ("not UTF-8", body.replace(b'"', b'"\xff', 1)),
            ("a zero byte behind it", body + b"\0"),
            ("twice", body + body),
            ("brackets", b"[" * 100_000),
            ("braces", b'{"a":' * 100_000),
            ("a list of it", b"[" + body + b"]"),
            ("a text", json.dumps(body.decode()).encode()),
            ("null", b"null"),
            ("a number", b"7"),
            ("an empty object", b"{}"),
            ("an empty list", b"[]"),
            ("a page of HTML", b"<!DOCTYPE html><html><body>Not found</body></html>"),
            ("a pointer of git", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            ("a number of 10,000 digits", body[:-1] + b',"number":' + b"9" * 10_000 + b"}"),
            *[(f"{name} given twice", b"{" + twin + b"," + body[1:])] * 3,
            *[(f"{name} given twice", body[:-1] + b"," + twin + b"}")] * 3,
        ]
    )
    replace(file, new)
    return changed(file, what, old, new)


def index_damage(file: Path, rng: random.Random) -> Damage:
    """The index's map: other files, absent ones, ones outside, other tensors."""
    old = file.read_bytes()
    document = json.loads(old)
    homes: dict[str, Any] = document["weight_map"]
    name = rng.choice(list(homes))
    files = sorted(set(homes.values()))
    outside = ["../" + files[0], "/etc/passwd", "a/b.safetensors", ".", "..", "", "config.json"]
    junk: Any = [None, 7, [], {}, [files[0]], "x\0y", "x" * 5000, "model-9.safetensors"]
    what = rng.choice(["entry", "entry", "all", "other", "less", "more", "map", "empty"])
    if what == "entry":
        homes[name] = rng.choice([*outside, *junk])
    elif what == "all":
        other = rng.choice([*outside, *junk])
        document["weight_map"] = dict.fromkeys(homes, other)
    elif what == "other":
        if len(files) == 1:
            raise Undamaged
        homes[name] = rng.choice([f for f in files if f != homes[name]])
    elif what == "less":
        del homes[name]
    elif what == "more":
        homes[name + "x"] = homes[name]
    elif what == "map":
        document["weight_map"] = rng.choice([None, 7, "x", [], list(homes), [files]])
    else:
        homes.clear()
    replace(file, json.dumps(document).encode())
    unused = what == "less" and any(part in name for part in UNUSED)
    accepted = (TYPED, HARMLESS) if unused else (TYPED,)
    return damage_of(file, f"{what}, {name}: {homes.get(name)!r:.60}", accepted, name, *TENSORS)


def changed(file: Path, what: str, old: bytes, new: bytes) -> Damage:
    """A damage that made `new` of a JSON file's `old`, judged by what the two mean."""
    before = json.loads(old)
    try:
        after = json.loads(new.decode("utf-8"))
    except (ValueError, RecursionError):
        return damage_of(file, what, (TYPED,), "tokenizer")
    differences = list(_differences(before, after, ()))
    words = {str(path[-1]) for path in _paths(before)}  # what fits no more may be another field
    words |= {"image processor"} | {str(key) for path, _, _ in differences for key in path} - {""}
    words |= {value[:30] for *_, value in differences if isinstance(value, str) and value}
    accepted: tuple[str, ...] = (TYPED, HARMLESS)
    valid = [plausible(file, path, a, b) for path, a, b in differences]
    # Nobody reads many of a tokenizer's settings, so those of another kind may stand beside others.
    enough = any if file.name == "tokenizer_config.json" else all
    if "index" not in file.name and enough(valid):
        accepted = (TYPED, HARMLESS, ANOTHER)
    return damage_of(file, what, accepted, "tokenizer", "rope_parameters", *TENSORS, *sorted(words))


def _paths(value: Any, path: FieldPath = ()) -> Iterator[FieldPath]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield (*path, key)
            yield from _paths(one, (*path, key))


def _differences(a: Any, b: Any, path: FieldPath) -> Iterator[tuple[FieldPath, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differences(a.get(key, ABSENT), b.get(key, ABSENT), (*path, key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from _differences(*pair, (*path, i))
    elif type(a) is not type(b) or a != b:
        yield path, a, b


def plausible(file: Path, path: FieldPath, old: Any, new: Any) -> bool:
    """Whether a field may as well be meant so, in a checkpoint of another model.

    It is absent, or null, so that its default counts; nobody knows it; or its value is of the
    same kind and, if a number, of the same sign and not huge. That accepts another model, but
    not one that does not run.
    """
    if new is ABSENT or new is None or old is ABSENT:
        return True
    name = str(path[-1]) if path else ""
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new)]
    if all(numbers):
        if isinstance(old, int) and not isinstance(new, int):
            return False
        if "tokenizer" in file.name or name.endswith(("_id", "_index")):
            return new >= -1
        if old <= 0 or "image_mean" in path:
            return abs(new) <= 1000
        return 0 < new <= max(1e6 * old, 1e9)
    if name == "eos_token_id" and isinstance(new, list):
        return all(type(one) is int for one in new)
    # What a field that was null would have held, only its readers know.
    return old is None or type(old) is type(new)
