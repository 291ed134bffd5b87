"""How one model is told of tools and results, and how it writes calls: found by rendering probes.

A chat template that knows `tools` writes them, and calls and results, in the form that its model
was trained on, which mlx-lm's tokenizer knows a parser for. Where either is missing, all of it is
told in plain texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from engine.prompts.chat_template import ChatTemplate
from engine.prompts.messages import Message, Part
from engine.tools import plain
from engine.tools.grammar import can_enforce
from engine.tools.parsing import Parser
from engine.tools.reader import CallForm
from engine.tools.tool import Tool
from vision_add_ons.errors import PromptError

PROBE = Tool("Qxtool_jvkz", "Qxdoes_jvkz", {"properties": {"Qxwith_jvkz": {"type": "string"}}})
CALL = {"id": "a1b2c3d4e", "name": PROBE.name, "arguments": {"Qxwith_jvkz": "Qxsaid_jvkz"}}
WORDS = (PROBE.name, PROBE.description, "Qxwith_jvkz")


class Telling:
    """Any thread may call it."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        """`tokenizer` is mlx-lm's."""
        self._tokenizer, self._template = tokenizer, template

    @cached_property
    def own(self) -> bool:
        """Whether the template tells of tools, calls and results, and calls can be read."""
        return self._tokenizer.has_tool_calling and self._knows_tools and self._knows_calls

    @cached_property
    def _knows_tools(self) -> bool:
        asked, system = Message("user", "Qxasks_jvkz"), Message("system", "Qxis_jvkz")
        return any(
            all(word in self._rendered(messages, PROBE) for word in WORDS)
            for messages in ([asked], [system, asked])
        )

    @cached_property
    def _knows_calls(self) -> bool:
        asked, call = Message("user", "Qxasks_jvkz"), Message("assistant", (), tool_calls=(CALL,))
        result = Message("tool", "Qxtold_jvkz", tool_call_id=str(CALL["id"]), name=PROBE.name)
        told = [self._rendered([asked, call, result], *tools) for tools in ((), (PROBE,))]
        return any("Qxsaid_jvkz" in text and "Qxtold_jvkz" in text for text in told)

    @cached_property
    def form(self) -> CallForm:
        """How calls are written."""
        if not self.own:
            from mlx_lm.tool_parsers import json_tools

            name, parse = "json_tools", json_tools.parse_tool_call
            return CallForm(name, plain.START, plain.END, Parser(parse, name))
        known = self._tokenizer
        name = known.tool_parser.__module__.rpartition(".")[2]
        parser = Parser(known.tool_parser, name)
        headed = name == "mistral" and "[ARGS]" in self._called
        return CallForm(name, known.tool_call_start, known.tool_call_end or "", parser, headed)

    @property
    def about(self) -> str:
        """In one line, for a report."""
        if not self._tokenizer.has_chat_template:
            return "none: there is no chat template"
        if self.own:
            enforced = "" if can_enforce(self.form) else ", which cannot be enforced"
            return f"told by the chat template, calls as {self.form.name}{enforced}"
        if self._knows_tools and self._knows_calls:
            why = "no parser is known for the calls that the chat template asks for"
        else:
            why = "the chat template knows none"
        return f"told in plain texts ({why})"

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """The messages as the template is to have them, and what it is told beside them."""
        if not self.own:
            return plain.in_words(messages, tools, self._has_system), {}
        told = {"tools": [tool.written for tool in tools]}
        return self._with_pictures(_named(messages)), told

    def _with_pictures(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Where a template has places for pictures, but none in results: a question behind the
        results shows them."""
        images = self._template.form.images
        if (
            not images
            or "tool" in images
            or not any(m.role == "tool" and m.images for m in messages)
        ):
            return messages
        made: list[Message] = []
        shown: list[Part] = []
        for message in messages:
            if shown and message.role != "tool":
                if message.role == "user":
                    message, shown = replace(message, parts=(*shown, *message.parts)), []
                else:
                    made.append(Message("user", shown))
                    shown = []
            if message.role == "tool" and message.images:
                count = len(message.images)
                said = message.text or f"({count} picture{'s' * (count > 1)}, shown below)"
                shown += [f"What {message.name or 'the tool'} returned:", *message.images]
                message = replace(message, parts=(said,))
            made.append(message)
        return [*made, Message("user", shown)] if shown else made

    @cached_property
    def _has_system(self) -> bool:
        messages = [Message("system", "Qxis_jvkz"), Message("user", "Qxasks_jvkz")]
        return "Qxis_jvkz" in self._rendered(messages)

    @cached_property
    def _called(self) -> str:
        call = Message("assistant", (), tool_calls=(CALL,))
        return self._rendered([Message("user", "Qxasks_jvkz"), call], PROBE)

    def _rendered(self, messages: Sequence[Message], *tools: Tool) -> str:
        told = {"tools": [tool.written for tool in tools]} if tools else None
        try:
            return self._template.render(messages, variables=told)
        except PromptError:
            return ""


def _named(messages: Sequence[Message]) -> Sequence[Message]:
    """Results with the names of their tools, which some templates write, by the calls before."""
    names: dict[str, str] = {}
    made = []
    for message in messages:
        for call in message.tool_calls:
            names[str(call.get("id"))] = call["function"]["name"]
        if message.role == "tool" and message.name is None:
            name = names.get(message.tool_call_id or "")
            message = message if name is None else replace(message, name=name)
        made.append(message)
    return made
