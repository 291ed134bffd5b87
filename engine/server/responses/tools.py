"""Tools in a request as Responses have them: flat, and chosen in other words than in chats."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from engine.server.values import ByKind, Ignored, Off, Strict, Word
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


WEB_SEARCH = ("web_search", "web_search_2025_08_26", "web_search_preview")


class WebSearch(BaseModel):
    """A search that OpenAI's service makes while it answers.

    There is none here. Codex offers one with each request, whether its user wants any: so it is
    left out, and a response's own `tools` do without it. `tool_choice` cannot ask for it.
    """

    type: Literal["web_search", "web_search_2025_08_26", "web_search_preview"]


def _known(tool: Any, kinds: Sequence[str] = ("function", "namespace", *WEB_SEARCH)) -> Any:
    """Names another kind before the fields that it has."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind not in kinds:
        shown = kind[:60].encode(errors="replace").decode()
        message = (
            "this server has no tool '{kind}': tools are functions that the client runs; have it "
            "leave this one out"
        )
        raise PydanticCustomError("unknown_kind", message, {"kind": shown})
    return tool


def _known_function(tool: Any) -> Any:
    return _known(tool, ("function",))


class NamespaceTool(Strict):
    """Functions that belong together. An answer calls them by its name and theirs."""

    type: Literal["namespace"]
    name: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    tools: list[Annotated[FunctionTool, BeforeValidator(_known_function)]] = Field(
        min_length=1, max_length=MOST_TOOLS, fail_fast=True
    )

    @property
    def functions(self) -> list[dict[str, Any]]:
        """Its tools by the names that the model knows them by; what the whole is for stands with
        the first."""
        made = [_function(tool, self.name) for tool in self.tools]
        about = (self.description, made[0]["description"])
        made[0]["description"] = "\n\n".join(text for text in about if text)
        return made


def full_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool by."""
    return f"{namespace}.{name}" if namespace else name


def _function(tool: FunctionTool, namespace: str | None = None) -> dict[str, Any]:
    own = tool.model_dump(include={"name", "description", "parameters", "strict"})
    return own | {"name": full_name(tool.name, namespace)}


def _kind_of_tool(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    if kind in WEB_SEARCH:
        return "<web_search>"
    return "<namespace>" if kind == "namespace" else "<function>"


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[NamespaceTool, Tag("<namespace>")]
    | Annotated[WebSearch, Tag("<web_search>")],
    Discriminator(_kind_of_tool),
    BeforeValidator(_known),
]
Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)]


class ChosenTool(Strict):
    """The tool that is to be called."""

    type: Literal["function"]
    name: str


class AllowedTools(Strict):
    """Those of the tools that this answer may call."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenTool] = Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)


Choice = Annotated[
    Annotated[Word, Tag("<word>")]
    | Annotated[ChosenTool, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    ByKind,
]


def asking(
    tools: Sequence[FunctionTool | NamespaceTool],
    choice: Word | ChosenTool | AllowedTools | None,
    parallel: bool,
) -> dict[str, Any]:
    """What there is to say of tools, by the names of `engine.Request`."""
    if not tools and choice in (None, "auto", "none"):
        return {}
    functions: list[dict[str, Any]] = []
    for tool in tools:
        functions += tool.functions if isinstance(tool, NamespaceTool) else [_function(tool)]
    told: Any = choice
    if isinstance(choice, ChosenTool):
        told = choice.name
    elif isinstance(choice, AllowedTools):
        names = {tool.name for tool in choice.tools}
        functions, told = [tool for tool in functions if tool["name"] in names], choice.mode
    return {"tools": functions, "tool_choice": told, "parallel_tool_calls": parallel}


def namespaces(tools: Sequence[FunctionTool | NamespaceTool]) -> dict[str, tuple[str, str]]:
    """The name of each tool of a namespace as the model has it, with its own and its
    namespace's."""
    return {
        full_name(tool.name, group.name): (tool.name, group.name)
        for group in tools
        if isinstance(group, NamespaceTool)
        for tool in group.tools
    }
