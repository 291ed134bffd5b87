"""Tools in a request as Responses have them: flat, and chosen in other words than in chats."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from engine.server.values import Ignored, Off, Strict
from engine.tools.tool import MOST_TOOLS


class FunctionTool(Strict):
    """What an answer may call, and the client runs."""

    type: Literal["function"]
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
    output_schema: Ignored = None
    defer_loading: Off = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, given: Any) -> Any:
        """Names another kind before the fields that it has."""
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "function":
            shown = kind[:60].encode(errors="replace").decode()
            message = "this server has no tool '{kind}': tools are functions that the client runs"
            raise PydanticCustomError("unknown_kind", message, {"kind": shown})
        return given


class ChosenTool(Strict):
    """The tool that is to be called."""

    type: Literal["function"]
    name: str


class AllowedTools(Strict):
    """Those of the tools that this answer may call."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenTool] = Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)


def _kind(choice: Any) -> str:
    if isinstance(choice, str):
        return "<word>"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return f"<{kind}>" if kind in ("function", "allowed_tools") else "<none>"


Word = Literal["none", "auto", "required"]
Choice = Annotated[
    Annotated[Word, Tag("<word>")]
    | Annotated[ChosenTool, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    Discriminator(
        _kind,
        custom_error_type="no_choice",
        custom_error_message="must be auto, none, required, a function or allowed_tools",
    ),
]


def asking(
    tools: list[FunctionTool], choice: Word | ChosenTool | AllowedTools | None, parallel: bool
) -> dict[str, Any]:
    """What there is to say of tools, by the names of `engine.Request`."""
    if not tools and choice in (None, "auto", "none"):
        return {}
    told: Any = choice
    if isinstance(choice, ChosenTool):
        told = choice.name
    elif isinstance(choice, AllowedTools):
        names = {tool.name for tool in choice.tools}
        tools, told = [tool for tool in tools if tool.name in names], choice.mode
    own = {"name", "description", "parameters", "strict"}
    return {
        "tools": [tool.model_dump(include=own) for tool in tools],
        "tool_choice": told,
        "parallel_tool_calls": parallel,
    }
