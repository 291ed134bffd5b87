"""What a request with tools asks of its answer: which texts are allowed, and how they are read."""

from typing import TYPE_CHECKING

from engine.schema import Schema
from engine.tools.grammar import calls_grammar, no_calls_grammar
from engine.tools.reader import CallReader

if TYPE_CHECKING:
    from engine.prompts.builder import PromptBuilder
    from engine.request import Request


def schema_of(request: "Request", builder: "PromptBuilder") -> Schema | None:
    """What the answer has to be, by the request's schema and by its choice of tools.

    Raises `OptionError` where this model cannot be held to it.
    """
    choice, form = request.tool_choice, builder.telling.form
    given = request.options.schema
    schema = None if given is None else Schema.of(given)
    if choice.mode == "none":
        return schema or no_calls_grammar(form)
    if choice.mode == "auto" and schema is None:
        return None
    tools = [tool for tool in request.tools if choice.name in (None, tool.name)]
    answer = schema if choice.mode == "auto" else None
    return calls_grammar(form, tools, _several(request), answer, builder.token_of)


def reader_of(request: "Request", builder: "PromptBuilder") -> CallReader | None:
    """What reads the answer's calls; None where there must be none."""
    if request.tool_choice.mode == "none":
        return None
    return CallReader(builder.telling.form, request.tools, _several(request))


def _several(request: "Request") -> bool:
    """Whether an answer may call more than once. A tool that is named is called once, as OpenAI
    has it: clients that ask for an object so take one call and no more."""
    return request.parallel_tool_calls and request.tool_choice.name is None
