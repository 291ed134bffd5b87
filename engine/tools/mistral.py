"""Mistral's calls with ids, `name[CALL_ID]id[ARGS]{...}`, of which mlx-lm's parser takes the id for
the name: Mistral Small 3.1's chat template and those behind it write them so."""

import json
import re
from collections.abc import Callable
from typing import Any

Parse = Callable[[str, Any], Any]

CALL_ID = "[CALL_ID]"
"""Between a tool's name and the call's id."""

_HEAD = re.compile(
    r"\s*(?:\[TOOL_CALLS\]\s*)?(?P<name>[\w.:/-]+)\s*(?:\[CALL_ID\]\s*(?P<id>[\w-]+)\s*)?"
    r"\[ARGS\]\s*"
)


def with_ids(parse: Parse) -> Parse:
    """mlx-lm's parser, and what is read here before it."""

    def read(text: str, tools: Any) -> Any:
        calls = _headed(text) if CALL_ID in text else None
        return parse(text, tools) if calls is None else calls

    return read


def _headed(text: str) -> list[dict[str, Any]] | None:
    """The calls of a block, if they have heads; raises `ValueError` where one breaks off."""
    decoder, calls, at = json.JSONDecoder(), list[dict[str, Any]](), 0
    text = text.rstrip()
    while at < len(text):
        head = _HEAD.match(text, at)
        if head is None:
            if not calls:
                return None
            raise ValueError("there is something else behind a call")
        arguments, at = decoder.raw_decode(text, head.end())
        calls.append({"name": head["name"], "id": head["id"], "arguments": arguments})
    return calls
