"""Schemas that llguidance must not be handed: those that would end the process, or never end.

It follows references and rules by recursion, on the stack of the thread that asks: some 900 objects
in a row are its end, and the process's. Patterns that hold for one text together, and numbers that
are multiples of something, become automata without a bound. So these are bounded here, all else by
`LLParserLimits`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from math import inf, lcm
from typing import Any
from urllib.parse import unquote

from engine.schema import Schema
from vision_add_ons.errors import OptionError

MOST_DEPTH = 400
"""Brackets in brackets, through references too: less than a third of what a stack of 8 MiB has
room for."""

MOST_PATTERNS = 8
"""Patterns and formats that hold for one text together; 20 may take for ever."""

MOST_MULTIPLE = 100_000
"""What numbers are multiples of, without the zeros at its end. A million takes 40 seconds."""

MOST_PROPERTIES = 4_000
"""Properties of all objects together: what each may stand beside grows with their square."""

MOST_WALKED = 400_000
"""Objects and lists that are looked at."""

_OLD = re.compile("draft-0[34]")
"""Of JSON Schema: there `id` is what `$id` is now."""
_SAID = re.compile(r'(//[^\n]*|#[^\n]*|"(?:[^"\\\n]|\\.)*+"|/(?:[^/\\]|\\.)*+/)|"[^\n]*|/[\s\S]*')
"""Comments, texts and patterns of a grammar, which may have several lines; or what begins as one
and has no end, for which nothing behind it may be looked at again and again."""
_HEAD = re.compile(r"^[ \t]*[?!]*([A-Za-z_][\w.-]*+)[^:\n|]*+:", re.M)
"""A rule's name, and what stands before the rule."""
_TOGETHER = ("allOf", "anyOf", "oneOf", "$ref")
"""Keywords whose schemas hold beside the others of their object."""
_ELSEWHERE = ("$defs", "definitions")


def check_bounds(schema: Schema) -> None:
    """Raises `OptionError` for what is beyond these bounds."""
    try:
        if schema.kind == "json":
            _Document(_loaded(schema.source)).check()
        elif schema.kind == "grammar":
            _check_grammar(schema.source)
    except RecursionError:
        raise _too_deep() from None


def _loaded(source: str) -> Any:
    try:
        return json.loads(source)
    except ValueError as error:
        raise OptionError(f"schema: it is no JSON: {error}") from error


def _check_grammar(source: str) -> None:
    if source.lstrip().startswith("{"):
        raise OptionError("schema: a grammar is written in Lark's notation, and this one is JSON")
    decoder = json.JSONDecoder()
    for found in re.finditer(r"%json\s*", source):
        try:
            document, _ = decoder.raw_decode(source, found.end())
        except ValueError:
            continue  # in a text, or refused by llguidance
        _Document(document).check()
    bare = _SAID.sub(lambda found: " " if found[1] else found[0], source)
    heads = list(_HEAD.finditer(bare))
    ends = [*(head.start() for head in heads[1:]), len(bare)]
    bodies = [bare[head.end() : end] for head, end in zip(heads, ends, strict=False)]
    weights = {head[1]: 1 + _nested(body) for head, body in zip(heads, bodies, strict=True)}
    names = {
        head[1]: set(re.findall(r"[A-Za-z_][\w.-]*", body)) & weights.keys()
        for head, body in zip(heads, bodies, strict=True)
    }
    if _longest(weights, names) > MOST_DEPTH:
        raise _too_deep()


def _nested(text: str) -> int:
    depth = most = 0
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += 1 if bracket in "([{" else -1
        most = max(most, depth)
    return most


class _Document:
    """A JSON schema, and what its references mean."""

    def __init__(self, root: Any) -> None:
        self._root = root
        old = isinstance(root, dict) and _OLD.search(str(root.get("$schema")))
        self._bases = ("$id", "id") if old else ("$id",)
        self._left = MOST_WALKED
        self._anchors: dict[str, Any] = {}
        self._depth = self._references = self._properties = 0
        self._odd = False
        """Whether references may mean what is not found here."""
        for at, depth in self._walk(root, ()):
            self._depth = max(self._depth, depth)
            if not isinstance(at, dict):
                continue
            self._properties += len(_listed(at.get("properties")))
            self._references += isinstance(at.get("$ref"), str)
            self._odd |= at is not root and any(
                isinstance(at.get(name), str) for name in self._bases
            )
            if isinstance(at.get("$anchor"), str):
                self._anchors[f"#{at['$anchor']}"] = at
        self._weighed: dict[int, tuple[int, int]] = {}

    def check(self) -> None:
        if self._properties > MOST_PROPERTIES:
            raise OptionError(
                f"schema: properties: it has {self._properties:,} properties, and at most "
                f"{MOST_PROPERTIES:,} are taken"
            )
        if self._deepest() > MOST_DEPTH:
            raise _too_deep()
        patterns, multiple = self._together(self._root)
        for name in _ELSEWHERE:
            for each in _listed(self._root.get(name) if isinstance(self._root, dict) else None):
                more = self._together(each)
                patterns, multiple = max(patterns, more[0]), max(multiple, more[1])
        if patterns > MOST_PATTERNS:
            raise OptionError(
                f"schema: pattern: {patterns} patterns and formats may hold together for one text, "
                f"and at most {MOST_PATTERNS} are taken"
            )
        if multiple > MOST_MULTIPLE:
            raise OptionError(
                f"schema: multipleOf: multiples of numbers of up to {MOST_MULTIPLE:,} are taken"
            )

    def _walk(self, start: Any, without: tuple[str, ...]) -> Iterator[tuple[Any, int]]:
        """Each object and list, and in how many it stands."""
        stack = [(start, 1)]
        while stack:
            at, depth = stack.pop()
            self._left -= 1
            if self._left < 0:
                raise OptionError("schema: it has too many parts, or refers to them too often")
            yield at, depth
            if isinstance(at, dict) and without:
                at = {name: value for name, value in at.items() if name not in without}
            inner = _listed(at)
            stack += [(each, depth + 1) for each in inner if isinstance(each, dict | list)]

    def _deepest(self) -> int:
        if not isinstance(self._root, dict):
            return self._depth
        nodes = {id(self._root): self._root}
        weights: dict[int, int] = {}
        follow: dict[int, set[int]] = {}
        waiting = [self._root]
        while waiting:
            node = waiting.pop()
            deepest, names = 0, set()
            for at, depth in self._walk(node, _ELSEWHERE):
                deepest = max(deepest, depth)
                if isinstance(at, dict) and isinstance(at.get("$ref"), str):
                    target = None if self._odd else self._resolved(at["$ref"])
                    if target is None:  # then each may mean any
                        return self._depth * (self._references + 1)
                    names.add(id(target))
                    if id(target) not in nodes:
                        nodes[id(target)] = target
                        waiting.append(target)
            weights[id(node)], follow[id(node)] = deepest, names
        return _longest(weights, follow)

    def _resolved(self, reference: str) -> Any:
        """The schema that it means; None if there is none to be found."""
        if reference in self._anchors:
            return self._anchors[reference]
        base, _, pointer = reference.partition("#")
        if base and base not in (self._root.get(name) for name in self._bases):
            return None
        at = self._root
        for name in unquote(pointer).split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(at, list):
                digits = re.fullmatch("[0-9]{1,7}", name)
                at = at[int(name)] if digits and int(name) < len(at) else None
            else:
                at = at.get(name) if isinstance(at, dict) else None
        return at if isinstance(at, dict) else {} if isinstance(at, bool) else None

    def _together(self, schema: Any) -> tuple[int, int]:
        """How many patterns may hold for one text in it, and what its numbers are multiples of."""
        if not isinstance(schema, dict):
            return 0, 1
        known = self._weighed.get(id(schema))
        if known is not None:
            return known
        self._weighed[id(schema)] = 0, 1  # in a circle, once
        patterns = sum(isinstance(schema.get(name), str) for name in ("pattern", "format"))
        multiple = _without_zeros(schema.get("multipleOf"))
        for name in _TOGETHER:
            given = schema.get(name)
            if name == "$ref" and isinstance(given, str):
                target = None if self._odd else self._resolved(given)
                parts = [self._together(self._root if target is None else target)]
            else:
                parts = [self._together(each) for each in _listed(given)]
            if name != "allOf":
                parts = [(max(p for p, _ in parts), max(m for _, m in parts))] if parts else []
            patterns += sum(p for p, _ in parts)
            multiple = min(lcm(multiple, *(m for _, m in parts)), 2**64)
        others = [
            self._together(each)
            for name, value in schema.items()
            if name not in (*_TOGETHER, *_ELSEWHERE)
            for each in (value, *_listed(value))
        ]
        patterns += max((p for p, _ in others), default=0)
        multiple = max([multiple, *(m for _, m in others)])
        self._weighed[id(schema)] = patterns, multiple
        return patterns, multiple


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _without_zeros(number: Any) -> int:
    """The digits of a number, as a number; 1 for what is none."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < inf:
        return 1
    digits = re.sub(r"[.]|e.*", "", repr(number)).strip("0")
    return int(digits[:20] or 1)


def _longest(weights: Mapping[Any, int], follow: Mapping[Any, set[Any]]) -> int:
    """The most that a way through a graph weighs, if it comes by each node once: what is in a
    circle counts as a whole."""
    order: dict[Any, int] = {}
    lowest: dict[Any, int] = {}
    weighed: dict[Any, int] = {}
    open_: list[Any] = []
    for start in weights:
        stack = [] if start in order else [(start, iter(follow[start]))]
        while stack:
            node, left = stack[-1]
            if node not in order:
                order[node] = lowest[node] = len(order)
                open_.append(node)
            for other in left:
                if other not in order:
                    stack.append((other, iter(follow[other])))
                    break
                if other not in weighed:
                    lowest[node] = min(lowest[node], order[other])
            else:
                stack.pop()
                if stack:
                    above = stack[-1][0]
                    lowest[above] = min(lowest[above], lowest[node])
                if lowest[node] == order[node]:
                    whole = [open_.pop()]
                    while whole[-1] != node:
                        whole.append(open_.pop())
                    behind = [weighed[o] for n in whole for o in follow[n] if o in weighed]
                    total = sum(weights[n] for n in whole) + max(behind, default=0)
                    weighed.update(dict.fromkeys(whole, total))
    return max(weighed.values(), default=0)


def _too_deep() -> OptionError:
    return OptionError(
        f"schema: it is nested deeper than {MOST_DEPTH} levels, its references followed"
    )
