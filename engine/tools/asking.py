"""What a request with tools asks of its answer: which texts are allowed, and how they are read."""

import logging
from typing import TYPE_CHECKING

from engine.decoding.call_guide import CallGuide
from engine.schema import Schema
from engine.tools.grammar import block_grammar, calls_grammar, no_calls_grammar
from engine.tools.reader import CallReader
from vision_add_ons.errors import OptionError

if TYPE_CHECKING:
    from engine.decoding.guide import AnswerGuide, Guides
    from engine.prompts.builder import PromptBuilder
    from engine.request import Request

log = logging.getLogger("sightline")

SECONDS = 5.0
"""How long is waited until calls that an answer may have can be held to their schemas. If that
takes longer, it is there for later answers."""


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


def guide_of(
    request: "Request",
    builder: "PromptBuilder",
    guides: "Guides | None",
    limit: "AnswerGuide | None",
) -> "AnswerGuide | None":
    """What guides an answer with tools: what guides it anyway (`limit`), or, where it need not
    call any, what holds each call to its form that it begins all the same.

    Where a call cannot be held to its form, or what that takes is not there within `SECONDS`, the
    model writes it as it can.
    """
    if request.tool_choice.mode != "auto" or request.options.schema is not None or guides is None:
        return limit
    form = builder.telling.form
    mark = builder.token_of(form.start)
    try:
        grammar = block_grammar(form, request.tools, request.parallel_tool_calls, builder.token_of)
        if grammar is None or mark is None:
            return limit
        call = guides.guide(grammar, SECONDS)
    except OptionError as error:
        log.debug("calls are not held to their schemas: %s", error)
        return limit
    return CallGuide(mark, call, bool(form.end), limit)


def reader_of(request: "Request", builder: "PromptBuilder") -> CallReader | None:
    """What reads the answer's calls; None where there must be none."""
    if request.tool_choice.mode == "none":
        return None
    return CallReader(builder.telling.form, request.tools, _several(request))


def _several(request: "Request") -> bool:
    """Whether an answer may call more than once. A tool that is named is called once, as OpenAI
    has it: clients that ask for an object so take one call and no more."""
    return request.parallel_tool_calls and request.tool_choice.name is None
