"""Which texts are calls of tools, as a grammar of llguidance: for answers that have to be some."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.decoding.guide import SPACE
from engine.schema import Schema
from engine.tools.kinds import is_text, texts_of
from engine.tools.mistral import CALL_ID
from engine.tools.reader import CallForm
from engine.tools.tool import MOST_CALLS, Tool
from vision_add_ons.errors import OptionError

LIKE_TEMPLATES = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""How chat templates write JSON: an answer's ids are then those of the prompt that it becomes part
of."""

TokenOf = Callable[[str], int | None]
"""The id of the token that is this text, if it is one."""


def calls_grammar(
    form: CallForm, tools: Sequence[Tool], parallel: bool, answer: Schema | None, token: TokenOf
) -> Schema:
    """An answer that is nothing but calls of these tools, one or (with `parallel`) up to
    `MOST_CALLS`; or what `answer` allows, if that is given.

    Raises `OptionError` where this model's way to write calls is not known well enough.
    """
    make = _FORMS.get(_name(form))
    if make is None:
        raise OptionError(
            f"tool_choice must be auto or none with this model: answers cannot be held to calls in "
            f"the form {form.name}"
        )
    rules = make(_Marks(form, token), tools, parallel)
    start = "BLANK calls"
    if answer is not None:
        if answer.kind != "json":
            raise OptionError("schema must be a JSON schema where there are tools, too")
        start = "answer | BLANK calls"
        spaced = {"whitespace_pattern": SPACE}
        rules.append(f"answer: %json {_json(json.loads(answer.source), spaced)}")
    # As models write them behind a thought.
    return Schema.grammar("\n".join([f"start: {start}", r"BLANK: /\n{0,2}/", *rules]))


def block_grammar(
    form: CallForm, tools: Sequence[Tool], parallel: bool, token: TokenOf
) -> Schema | None:
    """A block of calls, from the mark on that begins it; None where the form is not known."""
    make = _FORMS.get(_name(form))
    if make is None:
        return None
    several = parallel and form.name not in _ONE_A_BLOCK
    lenient = [replace(tool, strict=False) for tool in tools]
    return Schema.grammar("\n".join(["start: calls", *make(_Marks(form, token), lenient, several)]))


def can_enforce(form: CallForm) -> bool:
    """Whether answers can be held to calls in this form."""
    return _name(form) in _FORMS


def _name(form: CallForm) -> str:
    return f"{form.name} headed" if form.headed else form.name


def no_calls_grammar(form: CallForm) -> Schema:
    """Any text without the mark that begins a call."""
    mark = re.escape(form.start).replace("/", r"\/")
    return Schema.grammar(f"start: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*){mark}(?s:.*)/")


class _Marks:
    """The texts that are tokens by themselves, as a grammar has them."""

    def __init__(self, form: CallForm, token: TokenOf) -> None:
        self._token = token
        self.start, self.end = self(form.start), self(form.end) if form.end else ""

    def is_token(self, text: str) -> bool:
        return self._token(text) is not None

    def __call__(self, text: str) -> str:
        """Added tokens are no texts for llguidance; a tokenizer may have it one way or another."""
        token = self._token(text)
        written = json.dumps(text)
        return written if token is None else f"({written} | <[{token}]>)"


def _hermes(mark: _Marks, tools: Sequence[Tool], parallel: bool) -> list[str]:
    """As Hermes and Qwen have it: a JSON object of name and arguments between marks."""
    return [
        "calls: call" + _more(parallel, '"\\n" call'),
        f'call: {mark.start} "\\n" object "\\n" {mark.end}',
        *_objects(tools),
    ]


def _mistral(mark: _Marks, tools: Sequence[Tool], parallel: bool) -> list[str]:
    """A list of such objects behind a mark."""
    objects = "object" + _more(parallel, '", " object')
    return [f'calls: {mark.start} "[" {objects} "]"', *_objects(tools)]


def _mistral_headed(mark: _Marks, tools: Sequence[Tool], parallel: bool) -> list[str]:
    """A mark, the tool's name, an id where the model has a mark for it, another mark, the
    arguments."""
    id_ = f"({mark(CALL_ID)} /[A-Za-z0-9]{{9}}/)?" if mark.is_token(CALL_ID) else ""
    rules = ["calls: call" + _more(parallel, "call"), f"call: {_any('call', tools)}"]
    for i, tool in enumerate(tools):
        between = f"{mark.start} {json.dumps(tool.name)} {id_} {mark('[ARGS]')}"
        rules.append(f"call{i}: {between} arguments{i}")
    return rules + _arguments(tools)


def _kimi_k2(mark: _Marks, tools: Sequence[Tool], parallel: bool) -> list[str]:
    rules = [
        f"calls: {mark.start} call{_more(parallel, 'call')} {mark.end}",
        f"call: {mark('<|tool_call_begin|>')} ({_any('call', tools)}) {mark('<|tool_call_end|>')}",
    ]
    for i, tool in enumerate(tools):
        name = json.dumps(f"functions.{tool.name}:")
        middle = mark("<|tool_call_argument_begin|>")
        rules.append(f"call{i}: {name} /[0-9]{{1,3}}/ {middle} arguments{i}")
    return rules + _arguments(tools)


def _qwen3_coder(mark: _Marks, tools: Sequence[Tool], parallel: bool) -> list[str]:
    """A function and its parameters as elements; texts stand there as they are."""
    rules = [
        "calls: call" + _more(parallel, '"\\n" call'),
        f'call: {mark.start} "\\n" ({_any("call", tools)}) "\\n" {mark.end}',
        "text[lazy]: /(?s:.*)\\n<\\/parameter>\\n/",
    ]
    for i, tool in enumerate(tools):
        parts = []
        required = tool.parameters.get("required", ())
        for j, (name, schema) in enumerate(tool.parameters["properties"].items()):
            rules.append(f"value{i}x{j}: {_element(name, schema, tool)}")
            parts.append(f"value{i}x{j}" + ("" if name in required else "?"))
        begin = json.dumps(f"<function={tool.name}>\n")
        rules.append(f'call{i}: {begin} {" ".join(parts)} "</function>"')
    return rules


def _element(name: str, schema: Any, tool: Tool) -> str:
    begin = json.dumps(f"<parameter={name}>\n")
    if is_text(schema, tool.parameters):
        choices = texts_of(schema, tool.parameters)
        if choices:
            texts = " | ".join(json.dumps(f"{choice}\n</parameter>\n") for choice in choices)
            return f"{begin} ({texts})"
        unheld = [key for key in ("pattern", "format", "minLength", "maxLength") if key in schema]
        if tool.strict and unheld:
            raise OptionError(
                f"tools must ask for what can be held to where they are strict: {unheld[0]} of "
                f"{tool.name}'s {name!r:.60} cannot, for this model writes texts as they stand"
            )
        return f"{begin} text"
    within = {
        key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters
    }
    own = {**within, **schema} if isinstance(schema, dict) else schema
    return f'{begin} %json {_json(own, _style(tool))} "\\n</parameter>\\n"'


_FORMS: dict[str, Callable[[_Marks, Sequence[Tool], bool], list[str]]] = {
    "json_tools": _hermes,
    "mistral": _mistral,
    "mistral headed": _mistral_headed,
    "kimi_k2": _kimi_k2,
    "qwen3_coder": _qwen3_coder,
}
"""By the names of mlx-lm's parsers."""

_ONE_A_BLOCK = {"json_tools", "qwen3_coder"}
"""Those of them whose blocks hold one call each."""


def _objects(tools: Sequence[Tool]) -> list[str]:
    rules = [f"object: {_any('object', tools)}"]
    for i, tool in enumerate(tools):
        begin = f'{{"name": {json.dumps(tool.name)}, "arguments": '
        rules.append(f'object{i}: {json.dumps(begin)} arguments{i} "}}"')
    return rules + _arguments(tools)


def _arguments(tools: Sequence[Tool]) -> list[str]:
    return [
        f"arguments{i}: %json {_json(_closed(tool.parameters), _style(tool))}"
        for i, tool in enumerate(tools)
    ]


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A tool takes what it names, unless it says otherwise."""
    return {"additionalProperties": False, **parameters}


def _more(parallel: bool, another: str) -> str:
    """What may stand behind the first call. A model that would only go on calling comes to an
    end: else it would be cut off within a call."""
    return f" ({another}){{0,{MOST_CALLS - 1}}}" if parallel else ""


def _any(rule: str, tools: Sequence[Tool]) -> str:
    return " | ".join(f"{rule}{i}" for i in range(len(tools)))


def _style(tool: Tool) -> dict[str, Any]:
    return LIKE_TEMPLATES if tool.strict else {**LIKE_TEMPLATES, "lenient": True}


def _json(schema: Any, style: dict[str, Any]) -> str:
    if schema is True or schema is None:
        schema = {}
    given = schema if isinstance(schema, dict) else {"not": {}}
    return json.dumps({**given, "x-guidance": style})
