"""Messages: what conversations carry, as applications write it, read into one form."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.checks import reading
from engine.events import Finished
from engine.images import LoadedPicture, load_pictures
from engine.plain_data import MOST_DEPTH, depth_of
from engine.prompts.text_encoder import check_text
from vision_add_ons.errors import PromptError

ROLES = ("system", "user", "assistant", "tool")

Part = str | LoadedPicture
"""A text, or an image."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: its `role`, and its texts and images in their order.

    Checked when it is made, and not changed any more. Raises `PromptError`.
    """

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    parts: Sequence[Part] = ()
    """Texts, and images as `load_picture` returns them; kept as a tuple. One may be given alone."""
    tokens: tuple[int, ...] = ()
    """The ids an answer was generated as, if it was generated here."""
    reasoning: str | None = None
    """What an answer's model thought before it: templates read it as `reasoning_content`."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """An answer's calls in OpenAI's form, but for the arguments of each, which are a dictionary."""
    tool_call_id: str | None = None
    """Which call a tool's message answers."""
    name: str | None = None
    """Who speaks, or which tool."""
    text: str = field(init=False, repr=False, compare=False)
    """All its texts, one after the other."""
    images: tuple[LoadedPicture, ...] = field(init=False, repr=False, compare=False)
    """All its images, in order."""
    length: int = field(init=False, repr=False, compare=False)
    """The characters of all that it says, calls of tools among them."""

    def __post_init__(self) -> None:
        with reading("a message", PromptError):
            if not isinstance(self.role, str) or self.role not in ROLES:
                known = ", ".join(ROLES)
                raise PromptError(f"a message's role is one of {known}, not {self.role!r:.80}")
            single = isinstance(self.parts, str | LoadedPicture)
            parts = (self.parts,) if single else tuple(self.parts)
            texts = [part for part in parts if isinstance(part, str)]
            images = tuple(part for part in parts if isinstance(part, LoadedPicture))
            for part in parts:
                if not isinstance(part, str | LoadedPicture):
                    raise PromptError(f"a message's part is a text or an image, not {part!r:.80}")
            tokens = tuple(self.tokens)
            if not all(type(t) is int and 0 <= t < 2**31 for t in tokens):
                raise PromptError("a message's tokens are token ids")
            others = [t for t in (self.reasoning, self.tool_call_id, self.name) if t is not None]
            for text in (*texts, *others):
                check_text(text)
            calls = tuple(map(_tool_call, self.tool_calls))
            written = json.dumps(calls, ensure_ascii=False) if calls else ""
            made: dict[str, Any] = {
                "parts": parts,
                "tokens": tokens,
                "tool_calls": calls,
                "images": images,
            }
            made["text"] = "".join(texts)
            made["length"] = sum(map(len, (*texts, *others, written)))
            for name, value in made.items():
                object.__setattr__(self, name, value)


def answer_message(end: Finished) -> Message:
    """An answer as a message of its conversation."""
    tokens = () if end.finish_reason == "stop_string" else end.answer_tokens
    calls = tuple(call.as_dictionary for call in end.tool_calls)
    parts = (end.answer,) if end.answer or not calls else ()
    return Message("assistant", parts, tokens, end.reasoning or None, calls)


def read_messages(messages: Sequence[Any], images: Sequence[Any] = ()) -> list[Message]:
    """Read `Message`s, or dictionaries of `role` and `content`; `images` go to the last user turn.

    `content` is a text, or a list of parts in their order: texts, images as `load_picture` returns
    them, `{"type": "text", "text": ...}`, `{"type": "image", "image": SOURCE}` or OpenAI's
    `{"type": "image_url", "image_url": {"url": SOURCE}}`; with `tool_calls`, it may be None. A
    dictionary may also carry `images`, a list of sources, and a message's other fields by their
    names (`reasoning_content` means `reasoning`); what else it carries is not looked at. Images
    that are given apart from the parts go before a message's first text. Raises `PromptError` or
    `ImageError`.
    """
    with reading("the messages", PromptError):
        read = [m if isinstance(m, Message) else _read(m) for m in messages]
    if not read:
        raise PromptError("there are no messages; give at least one user message")
    pictures = load_pictures(images) if type(images) is not tuple or images else ()
    if pictures:
        last = max((i for i, m in enumerate(read) if m.role == "user"), default=None)
        if last is None:
            raise PromptError("pictures need a user message to belong to")
        read[last] = replace(read[last], parts=_led(pictures, read[last].parts))
    return read


def check_results(messages: Sequence[Message]) -> None:
    """Raises `PromptError` for what a tool returned to a call that no message before it has."""
    called: set[str | None] = set()
    for message in messages:
        ids = (call.get("id") for call in message.tool_calls)
        called.update(None if id_ is None else str(id_) for id_ in ids)
        id_ = message.tool_call_id
        # A call without an id may be the one that is meant.
        if message.role == "tool" and id_ and called.isdisjoint((id_, None)):
            raise PromptError(
                f"no call of a tool has the id {id_!r:.80} of this result; give the answer that "
                "made it, too, before it"
            )


def read_parts(content: Any) -> tuple[Part, ...]:
    """A text, an image, or a list of parts in any form that `read_messages` knows.

    Raises `PromptError` or `ImageError`.
    """
    if content is None:
        return ()
    if isinstance(content, str | LoadedPicture):
        return (content,)
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray | memoryview):
        raise PromptError(f"a message's content is a text or a list of parts, not {content!r:.80}")
    return tuple(map(_read_part, content))


def _read(message: Any) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(f"a message is a dictionary of role and content, not {message!r:.80}")
    calls = message.get("tool_calls") or ()
    content = message.get("content")
    if content is None and not calls:
        raise PromptError("a message's content is a text or a list of parts, not None")
    reasoning = message.get("reasoning")
    return Message(
        message["role"],
        _led(load_pictures(message.get("images")), read_parts(content)),
        message.get("tokens") or (),
        message.get("reasoning_content") if reasoning is None else reasoning,
        calls,
        message.get("tool_call_id"),
        message.get("name"),
    )


def _read_part(part: Any) -> Part:
    if isinstance(part, str | LoadedPicture):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    source = None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image":
        source = part.get("image")
    elif kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        source = url if isinstance(url, str) else None
    if source is None:
        raise PromptError(f"a part of a message is a text or an image, not {part!r:.80}")
    return load_pictures([source])[0]


def _led(pictures: Sequence[LoadedPicture], parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with pictures before their first text, behind others that stand there."""
    first = next((i for i, part in enumerate(parts) if isinstance(part, str)), len(parts))
    return (*parts[:first], *pictures, *parts[first:])


def _tool_call(call: Any) -> Mapping[str, Any]:
    """A call of a tool in OpenAI's form, its arguments as templates want them: a mapping."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    arguments = function.get("arguments", {}) if isinstance(function, Mapping) else None
    if isinstance(arguments, str):
        _check_depth(arguments)
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise PromptError(
            "a tool call is a dictionary whose function has a name, and arguments as a dictionary "
            f"or its JSON, not {call!r:.80}"
        )
    others = {k: v for k, v in call.items() if k not in ("name", "arguments", "function")}
    whole = {
        "type": "function",
        **others,
        "function": {"name": name, "arguments": dict(arguments)},
    }
    written = json.dumps(whole, ensure_ascii=False)  # it is to be saved, and nobody else's
    _check_depth(written)
    check_text(written)
    made: dict[str, Any] = json.loads(written)
    return made


def _check_depth(written: str) -> None:
    if depth_of(written) > MOST_DEPTH:
        raise PromptError(f"a tool call's arguments are nested deeper than {MOST_DEPTH} levels")
