"""A tool as an application describes it, and which of several an answer has to call."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.checks import check_flag, reading
from engine.plain_data import MOST_DEPTH, as_plain, check_characters, depth_of
from engine.tools.kinds import reading_type
from vision_add_ons.errors import OptionError

MOST_TOOLS = 256
"""Tools that a request may have."""

MOST_SOURCE = 2**19
"""Characters of all tools of a request together, written out as JSON."""

MOST_CALLS = 32
"""Calls that one answer may have: it ends behind the last of them. Nobody else's number: OpenAI
takes back up to 128, and servers whose grammars have no bound go on to the end of the context."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
"""What a tool may be called. The forms in which models write calls have no quotes around it."""


@dataclass(frozen=True)
class Tool:
    """What a model may call. Checked when it is made: raises `OptionError`, naming the tool."""

    name: str
    """Letters, digits and `_ - . : /`, at most 128 of them."""
    description: str = ""
    """What it does and when to call it, for the model to read."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """A JSON schema of its arguments, which are an object; kept as a copy."""
    strict: bool = False
    """Where `tool_choice` has a call enforced, refuse a schema that could not be held to in
    every part, instead of holding to the rest."""

    def __post_init__(self) -> None:
        with reading("a tool", OptionError):
            self._check()

    def _check(self) -> None:
        if not isinstance(self.name, str) or NAME.fullmatch(self.name) is None:
            raise OptionError(
                f"tools must have names of letters, digits and _ - . : /, at most 128, not "
                f"{_shown(self.name)}"
            )
        about = f"tools must be called with what they say: {self.name}'s"
        if self.description is not None and not isinstance(self.description, str):
            kind = type(self.description).__name__
            raise OptionError(f"{about} description is a text, not {kind}")
        object.__setattr__(self, "description", self.description or "")
        if len(self.description) > MOST_SOURCE:
            raise _too_much(len(self.description))
        check_flag(f"strict of the tool {self.name}", self.strict)
        object.__setattr__(self, "parameters", self._checked(self.parameters))
        check_characters(f"{about} description", self.description)

    def _checked(self, given: Any) -> dict[str, Any]:
        about = f"tools must have a JSON schema of an object as parameters, which {self.name}'s"
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            raise OptionError(f"{about} is not: it is {type(given).__name__}")
        try:
            written = json.dumps(given, ensure_ascii=False, allow_nan=False, default=as_plain)
        except RecursionError as error:
            raise OptionError(f"{about} is not: it is nested too deep") from error
        except (TypeError, ValueError) as error:
            raise OptionError(f"{about} is not: {error!s:.150}") from error
        if len(written) > MOST_SOURCE:
            raise _too_much(len(written))
        check_characters(f"{about} is not: a text in it", written)
        if depth_of(written) > MOST_DEPTH:
            raise OptionError(f"{about} is not: it is nested deeper than {MOST_DEPTH} levels")
        made: dict[str, Any] = json.loads(written)
        if made.setdefault("type", "object") != "object":
            raise OptionError(f"{about} is not: its type is {made['type']!r:.60}")
        properties = made.setdefault("properties", {})
        if not isinstance(properties, dict):
            raise OptionError(f"{about} is not: its properties are no object")
        for name, schema in properties.items():
            if not isinstance(schema, dict | bool):
                raise OptionError(f"{about} is not: its property {name!r:.60} is no schema")
        required = made.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise OptionError(f"{about} is not: what is required is no list of names")
        return made

    @property
    def written(self) -> dict[str, Any]:
        """In OpenAI's form, as chat templates and mlx-lm's parsers read it."""
        # Parsers look into each property's schema, and take none that is `true`.
        given = self.parameters["properties"]
        properties = {k: v if isinstance(v, dict) else {} for k, v in given.items()}
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": {**self.parameters, "properties": properties},
        }
        return {"type": "function", "function": function}

    @property
    def typed(self) -> dict[str, Any]:
        """The same, each property with one type: for parsers that read values by that alone."""
        written = self.written
        about = written["function"]["parameters"]
        about["properties"] = {
            name: {**schema, "type": reading_type(schema, self.parameters)}
            for name, schema in about["properties"].items()
        }
        return written

    @classmethod
    def of(cls, given: Any) -> "Tool":
        """A `Tool`, or a dictionary of `name`, `description` and `parameters`, which may lie
        under `function` as OpenAI has it. What else it carries is not looked at."""
        with reading("a tool", OptionError):
            return given if isinstance(given, cls) else cls._of(given)

    @classmethod
    def _of(cls, given: Any) -> "Tool":
        if not isinstance(given, Mapping):
            raise OptionError(f"tools must be dictionaries, not {type(given).__name__}")
        kind = given.get("type", "function")
        if kind != "function":
            raise OptionError(f"tools must be of the type 'function', not {_shown(kind)}")
        function = given.get("function", given)
        if not isinstance(function, Mapping) or "name" not in function:
            raise OptionError("tools must be dictionaries with a name; one has none")
        description, strict = function.get("description"), function.get("strict")
        return cls(
            function["name"],
            description if description is not None else "",
            function.get("parameters"),  # type: ignore[arg-type]
            strict if strict is not None else False,
        )


def read_tools(given: Any) -> tuple[Tool, ...]:
    """What `Request.tools` takes. Raises `OptionError`."""
    with reading("the tools", OptionError):
        return () if given is None else _read(given)


def _read(given: Any) -> tuple[Tool, ...]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise OptionError(f"tools must be a list, not {type(given).__name__}")
    if len(given) > MOST_TOOLS:
        raise OptionError(f"tools must be at most {MOST_TOOLS}; these are {len(given)}")
    tools: dict[str, Tool] = {}
    size = 0
    for tool in map(Tool.of, given):
        if tool.name in tools:
            raise OptionError(f"tools must have names of their own; two are called {tool.name}")
        tools[tool.name] = tool
        size += len(json.dumps(tool.written, ensure_ascii=False))
        if size > MOST_SOURCE:
            raise _too_much(size)
    return tuple(tools.values())


def _too_much(size: int) -> OptionError:
    return OptionError(
        f"tools must have at most {MOST_SOURCE:,} characters together; these have {size:,} or more"
    )


Mode = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class ToolChoice:
    """Whether an answer may, must not or has to call tools, and which."""

    mode: Mode
    """With "required", at least one call is all that the answer has."""
    name: str | None = None
    """The only tool that may be called, if it is one by name."""


AUTO = ToolChoice("auto")


def read_choice(given: Any, tools: Sequence[Tool]) -> ToolChoice:
    """What `Request.tool_choice` takes. Raises `OptionError`."""
    with reading("tool_choice", OptionError):
        return _choice(given, tools)


def _choice(given: Any, tools: Sequence[Tool]) -> ToolChoice:
    if isinstance(given, ToolChoice):
        given = given.name or given.mode
    name = given
    if isinstance(given, Mapping):
        function = given.get("function", given)
        name = function.get("name") if isinstance(function, Mapping) else None
        if given.get("type", "function") != "function" or not isinstance(name, str):
            raise OptionError(
                "tool_choice must be auto, none, required, or a tool's name, which may be given "
                'as {"type": "function", "function": {"name": ...}}'
            )
    elif given is None:
        return AUTO
    elif not isinstance(given, str):
        raise OptionError(f"tool_choice must be a text, not {type(given).__name__}")
    elif given in ("auto", "none"):
        return ToolChoice(given)  # type: ignore[arg-type]
    if not tools:
        raise OptionError("tool_choice must be auto or none where there are no tools")
    if given == "required":
        return ToolChoice("required")
    if name not in (tool.name for tool in tools):
        raise OptionError(f"tool_choice names no tool that there is: {name!r:.80}")
    return ToolChoice("required", name)


def _shown(value: Any) -> str:
    return f"{value!r:.150}" if isinstance(value, str) else type(value).__name__
