"""Tools in a request, and calls of them in an answer, as chat completions have both."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from engine.events import ToolCall, ToolCallDelta
from engine.server.values import ByKind, Ignored, Strict, Word
from engine.tools.tool import MOST_TOOLS

Json = dict[str, Any]


class ToolFunction(Strict):
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="A JSON schema of an object; without one, there are no arguments."
    )
    strict: bool | None = Field(
        None,
        description="Where tool_choice enforces a call, refuse a schema that asks for what cannot "
        "be held to.",
    )


class FunctionTool(Strict):
    """What an answer may call."""

    type: Literal["function"]
    function: ToolFunction = Field(default=None, validate_default=False)  # type: ignore[assignment]
    cache_control: Ignored = None

    @model_validator(mode="after")
    def _has_one(self) -> "FunctionTool":
        if self.function is None:  # said here, so that another type is named before it
            raise ValueError("a tool has a function")
        return self


Tools = Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS, fail_fast=True)]


class ChosenFunction(Strict):
    name: str


class NamedTool(Strict):
    """The tool that is to be called."""

    type: Literal["function"]
    function: ChosenFunction


class Allowed(Strict):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)


class AllowedTools(Strict):
    """Those of the tools that this answer may call; the model is told of these alone."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed

    @property
    def names(self) -> list[str]:
        return [tool.function.name for tool in self.allowed_tools.tools]


Choice = Annotated[
    Annotated[Word, Tag("<word>")]
    | Annotated[NamedTool, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    ByKind,
]


def asking(
    tools: Sequence[FunctionTool], choice: Word | NamedTool | AllowedTools | None, parallel: bool
) -> Json:
    """What there is to say of tools, by the names of `engine.Request`."""
    if not tools and choice in (None, "auto", "none"):
        return {}
    # Not dumped: what is in them may be much, and is looked at in the engine.
    functions = [dict(tool.function) for tool in tools]
    told: Any = choice
    if isinstance(choice, NamedTool):
        told = choice.function.name
    elif isinstance(choice, AllowedTools):
        functions = [function for function in functions if function["name"] in choice.names]
        told = choice.allowed_tools.mode
    return {"tools": functions, "tool_choice": told, "parallel_tool_calls": parallel}


class CalledFunction(Strict):
    name: str
    arguments: str | dict[str, Any] = Field(description="A JSON object, written out or not.")
    parsed_arguments: Ignored = None


class Called(Strict):
    """A call in an earlier answer."""

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Ignored = None
    cache_control: Ignored = None


def delta(event: ToolCallDelta, first: bool) -> Json:
    """A piece of a call in a stream; `first` with what it is called."""
    if not first:
        return {"index": event.index, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.index, "id": event.id, "type": "function", "function": function}


def whole(call: ToolCall) -> Json:
    """A call in an answer."""
    function = {"name": call.name, "arguments": call.written}
    return {"id": call.id, "type": "function", "function": function}
