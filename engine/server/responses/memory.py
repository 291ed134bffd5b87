"""Responses that are kept, for those that go on from them."""

import json
import sys
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.prompts.messages import Message

MOST_RESPONSES = 1024
"""Responses that are kept at once."""

MOST_BYTES = 256 * 2**20
"""What they may take together, pictures among it."""

_OVERHEAD = 1024
"""Bytes that a message, or an item, takes beside what it says, about."""


@dataclass(frozen=True)
class Kept:
    client: Hashable
    """Whose it is."""
    body: bytes
    """The response as it was told, but for its output, as JSON."""
    messages: tuple[Message, ...]
    """The whole conversation, its answer included and without instructions."""
    items: dict[str, bytes]
    """Its output by the ids of the items, each as JSON."""

    @property
    def told(self) -> dict[str, Any]:
        """The response as it was told."""
        output = [json.loads(item) for item in self.items.values()]
        return {**json.loads(self.body), "output": output}

    @property
    def size(self) -> int:
        """In bytes, about, without the messages, which others may share."""
        items = sum(_OVERHEAD + len(item) for item in self.items.values())
        return len(self.body) + items + 8 * len(self.messages)


@dataclass
class _Held:
    """A message of one response, or of several."""

    size: int
    """In bytes, about."""
    responses: int = 0
    """Those that hold it."""


class ResponseMemory:
    """The latest responses by their ids; what was not asked for longest goes first.

    Responses that go on from one another share their messages, which are counted once. For one
    thread.
    """

    def __init__(self, most: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._items: dict[str, str] = {}
        """Which response an item belongs to."""
        self._messages: dict[int, _Held] = {}
        """By identity, which a message keeps while it is held."""
        self.held = 0
        """Bytes of all that is kept."""

    def keep(self, body: dict[str, Any], messages: Sequence[Message], client: Hashable) -> bool:
        """Whether it is kept: what alone is more than all may be is not."""
        items = {item["id"]: json.dumps(item).encode() for item in body["output"]}
        bare = json.dumps({**body, "output": []}).encode()
        kept = Kept(client, bare, tuple(messages), items)
        all_held = [self._messages.get(id(m)) or _Held(_size(m)) for m in kept.messages]
        if kept.size + sum(held.size for held in all_held) > self._most_bytes:
            return False
        self._kept[body["id"]] = kept
        self._items |= dict.fromkeys(items, body["id"])
        self.held += kept.size
        for message, held in zip(kept.messages, all_held, strict=True):
            held = self._messages.setdefault(id(message), held)
            self.held += 0 if held.responses else held.size
            held.responses += 1
        while len(self._kept) > self._most or self.held > self._most_bytes:
            self._forget(next(iter(self._kept)))
        return True

    def find(self, identity: str, client: Hashable) -> Kept | None:
        """A client's own; None for what is not kept, or another's."""
        kept = self._kept.get(identity)
        if kept is None or kept.client != client:
            return None
        self._kept.move_to_end(identity)
        return kept

    def item(self, identity: str, client: Hashable) -> dict[str, Any] | None:
        """An item of a client's response."""
        kept = self.find(self._items.get(identity, ""), client)
        return None if kept is None else dict(json.loads(kept.items[identity]))

    def drop(self, identity: str, client: Hashable) -> bool:
        """Whether there was one."""
        there = self.find(identity, client) is not None
        if there:
            self._forget(identity)
        return there

    def __len__(self) -> int:
        return len(self._kept)

    def _forget(self, identity: str) -> None:
        kept = self._kept.pop(identity)
        self.held -= kept.size
        for item in kept.items:
            del self._items[item]
        for message in kept.messages:
            held = self._messages[id(message)]
            held.responses -= 1
            if not held.responses:
                del self._messages[id(message)]
                self.held -= held.size


def _size(message: Message) -> int:
    """In bytes, about."""
    texts = [part for part in message.parts if isinstance(part, str)]
    texts += [text for text in (message.reasoning, message.tool_call_id, message.name) if text]
    # Calls are objects of many values, each of which takes many times its letters.
    calls = 8 * len(json.dumps(message.tool_calls)) if message.tool_calls else 0
    pictures = sum(picture.bytes_held for picture in message.images)
    tokens = 40 * len(message.tokens)
    return _OVERHEAD + sum(map(sys.getsizeof, texts)) + tokens + calls + pictures
