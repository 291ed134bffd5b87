"""Tools for a model whose chat template has no words for them: all is told in plain texts.

The form is the one that most models have seen: Hermes', which Qwen's templates write too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.prompts.messages import Message, Part
from engine.tools.tool import Tool

START, END = "<tool_call>", "</tool_call>"
RESULT_START, RESULT_END = "<tool_response>", "</tool_response>"

_TOLD = """\
You may call one or more tools to help with the user's question. These are the tools, one a line, \
each with a JSON schema of its parameters:
<tools>
{tools}
</tools>

To call a tool, answer with its name and its arguments as a JSON object between marks, and with \
nothing behind that:
<tool_call>
{{"name": "NAME", "arguments": {{"PARAMETER": "VALUE"}}}}
</tool_call>
What it returns comes between <tool_response> and </tool_response>."""


def told(tools: Sequence[Tool]) -> str:
    """What a system message says of tools."""
    lines = (json.dumps(tool.written["function"], ensure_ascii=False) for tool in tools)
    return _TOLD.format(tools="\n".join(lines))


def in_words(messages: Sequence[Message], tools: Sequence[Tool], system: bool) -> list[Message]:
    """Messages in which tools, calls and results are texts of the system, the model and the user.

    `system` is whether the template takes a system message; else the first question begins with
    what there is to tell of tools. Pictures of results stay in their places among the texts.
    """
    made: list[Message] = []
    told_result = False
    for message in messages:
        if message.role == "tool":
            _say(made, told_result, (f"{RESULT_START}\n", *message.parts, f"\n{RESULT_END}"))
        elif message.tool_calls:
            calls = "\n".join(map(_call, message.tool_calls))
            text = message.text
            parts = (f"{text}\n{calls}" if text else calls,)
            made.append(replace(message, parts=(*message.images, *parts), tool_calls=()))
        elif message.role == "user" and told_result:
            _say(made, told_result, message.parts)
        else:
            made.append(message)
        told_result = message.role == "tool"
    return _begun(made, told(tools), system) if tools else made


def _begun(messages: list[Message], text: str, system: bool) -> list[Message]:
    first = next((i for i, m in enumerate(messages) if m.role in ("system", "user")), None)
    if first is not None and (messages[first].role == "system" or not system):
        at = messages[first]
        parts = (*at.parts, f"\n\n{text}") if at.role == "system" else (f"{text}\n\n", *at.parts)
        return [*messages[:first], replace(at, parts=_joined(parts)), *messages[first + 1 :]]
    return [Message("system", text), *messages]


def _say(messages: list[Message], more: bool, parts: Sequence[Part]) -> None:
    """One question more, or more of the last one: many templates want the roles to take turns."""
    if more:
        last = messages[-1]
        messages[-1] = replace(last, parts=_joined((*last.parts, "\n", *parts)))
    else:
        messages.append(Message("user", _joined(parts)))


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Texts that follow one another as one."""
    made: list[Part] = []
    for part in parts:
        if isinstance(part, str) and made and isinstance(made[-1], str):
            made[-1] += part
        else:
            made.append(part)
    return made


def _call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    written = json.dumps(
        {"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False
    )
    return f"{START}\n{written}\n{END}"
