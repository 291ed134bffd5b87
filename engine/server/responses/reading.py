"""A conversation, made of the items of a request and of what went before it."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter

from engine.prompts.messages import Message
from engine.server.errors import ApiError
from engine.server.parts import as_turn_parts
from engine.server.responses.items import (
    CallItem,
    Item,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ReferenceItem,
)
from engine.server.responses.tools import full_name
from engine.server.turns import Shown, Turn

Find = Callable[[str], dict[str, Any] | None]
"""An item of a kept response, by its id."""

_ITEM: TypeAdapter[Any] = TypeAdapter(Item)


class _Answer:
    """An answer that comes in several items: what was thought, said and called."""

    def __init__(self) -> None:
        self.thoughts: list[str] = []
        self.parts: list[str | Shown] = []
        self.calls: list[dict[str, Any]] = []
        self.last = ""
        """The kind of its last item."""

    @property
    def turn(self) -> Turn:
        parts = self.parts
        if all(isinstance(part, str) for part in parts):
            parts = ["".join(map(str, parts))] if parts or not self.calls else []
        thought = "".join(self.thoughts) or None
        return Turn("assistant", parts, reasoning=thought, tool_calls=self.calls)


def turns_of(given: str | Sequence[Any] | None, find: Find) -> list[Turn]:
    """What a request's `input` says. Raises `ApiError` for a reference to what is not kept, for a
    second one to the same, and for a thought that cannot be read.

    What a model put out comes as several items, which are one answer: up to what somebody else
    says, or to a second message behind a first.
    """
    if isinstance(given, str):
        return [Turn("user", [given])]
    turns: list[Turn] = []
    answer: _Answer | None = None
    referred: set[str] = set()
    for at, item in enumerate(given or ()):
        if isinstance(item, ReferenceItem):
            if item.id in referred:  # a few bytes each, they would stand for many
                message = f"the item {item.id!r:.140} is referred to more than once"
                raise ApiError(400, message, "duplicate_item", f"input[{at}].id")
            referred.add(item.id)
            item = _resolved(item, find)
        made = _turn(item)
        again = isinstance(item, MessageItem) and answer is not None and answer.last == "message"
        if answer is not None and (made is not None or again):
            turns.append(answer.turn)
            answer = None
        if made is not None:
            turns.append(made)
            continue
        answer = answer or _Answer()
        answer.last = item.type
        if isinstance(item, ReasoningItem):
            answer.thoughts.append(_thought(item, at))
        elif isinstance(item, CallItem):
            name = full_name(item.name, item.namespace)
            function = {"name": name, "arguments": item.arguments}
            answer.calls.append({"id": item.call_id, "type": "function", "function": function})
        else:
            answer.parts += as_turn_parts(item.content)
    return turns if answer is None else [*turns, answer.turn]


def _turn(item: Any) -> Turn | None:
    """What is no part of an answer."""
    if isinstance(item, OutputItem):
        return Turn("tool", as_turn_parts(item.output), tool_call_id=item.call_id)
    if isinstance(item, MessageItem) and item.role != "assistant":
        role = "system" if item.role == "developer" else item.role
        return Turn(role, as_turn_parts(item.content))
    return None


def _resolved(item: ReferenceItem, find: Find) -> Any:
    known = find(item.id)
    if known is None:
        message = f"there is no item {item.id!r:.140} here; responses are kept for a while, and "
        raise ApiError(404, f"{message}not with store: false", "item_not_found", "input")
    return _ITEM.validate_python(known)


def _thought(item: ReasoningItem, at: int) -> str:
    try:
        return item.thought
    except ValueError as error:
        param = f"input[{at}].encrypted_content"
        raise ApiError(400, f"{param!r}: {error}", "invalid_encrypted_content", param) from None


def one_system(messages: Sequence[Message]) -> list[Message]:
    """The system messages that a conversation begins with as one: instructions, and what clients
    say beside them, where most chat templates have a place for one alone."""
    count = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if count < 2:
        return list(messages)
    parts = [part for m in messages[:count] for part in ("\n\n", *m.parts)]
    return [Message("system", parts[1:]), *messages[count:]]
