"""Responses that are kept, for those that go on from them."""

import json
import sys
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.images import LoadedPicture
from engine.prompts.messages import Message
from engine.server.pictures import LOW_DETAIL

MOST_RESPONSES = 1024
"""Responses that are kept at once."""

MOST_BYTES = 256 * 2**20
"""What they may take together, pictures among it."""

_OVERHEAD = 1024
"""Bytes that a message takes beside what it says, about."""


@dataclass(frozen=True)
class Kept:
    client: Hashable
    """Whose it is."""
    body: bytes
    """The response as it was told, as JSON."""
    messages: tuple[Message, ...]
    """The whole conversation, its answer included and without instructions."""
    items: tuple[str, ...]
    """The ids of its output."""


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
        items = tuple(item["id"] for item in body["output"])
        kept = Kept(client, json.dumps(body).encode(), tuple(messages), items)
        all_held = [self._messages.get(id(m)) or _Held(_size(m)) for m in kept.messages]
        if len(kept.body) + sum(held.size for held in all_held) > self._most_bytes:
            return False
        self._kept[body["id"]] = kept
        self._items |= dict.fromkeys(items, body["id"])
        self.held += len(kept.body)
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
        if kept is None:
            return None
        output: list[dict[str, Any]] = json.loads(kept.body)["output"]
        return next(item for item in output if item["id"] == identity)

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
        self.held -= len(kept.body)
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
    pictures = sum(map(_picture_size, message.images))
    tokens = 40 * len(message.tokens)
    return _OVERHEAD + sum(map(sys.getsizeof, texts)) + tokens + calls + pictures


def _picture_size(picture: LoadedPicture) -> int:
    # One that was shrunk has no file, and making one would hold everybody up.
    width, height = picture.size
    return 3 * width * height if max(picture.size) <= LOW_DETAIL else len(picture.encoded())
