"""Messages as applications write them, read into one form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.checks import reading
from engine.images import LoadedPicture, load_pictures
from engine.text_encoder import check_text
from vision_add_ons.errors import PromptError

ROLES = ("system", "user", "assistant")


@dataclass
class Message:
    """One turn: its `role`, its `text`, and the `pictures` that it shows.

    `tokens` are the ids an answer was generated as, if it was generated here.
    """

    role: str
    text: str
    pictures: tuple[LoadedPicture, ...] = ()
    tokens: tuple[int, ...] = ()


def read_messages(messages: Sequence[Any], images: Sequence[Any] = ()) -> list[Message]:
    """Read `Message`s, or dictionaries of `role` and `content`; `images` go to the last user turn.

    `content` is a text, or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image",
    "image": SOURCE}` or OpenAI's `{"type": "image_url", "image_url": {"url": SOURCE}}`; a
    dictionary may also carry `images`, a list of sources. Raises `PromptError` or `ImageError`.
    """
    with reading("the messages", PromptError):
        read = [_read(m) for m in messages]
    if not read:
        raise PromptError("there are no messages; give at least one user message")
    if pictures := load_pictures(images):
        last = max((i for i, m in enumerate(read) if m.role == "user"), default=None)
        if last is None:
            raise PromptError("pictures need a user message to belong to")
        read[last] = Message("user", read[last].text, (*read[last].pictures, *pictures))
    return read


def _read(message: Any) -> Message:
    if isinstance(message, Message):
        fields = {"role": message.role, "content": message.text, "images": message.pictures}
        checked = _read(fields)
        checked.tokens = tuple(message.tokens)
        if not all(type(t) is int and 0 <= t < 2**31 for t in checked.tokens):
            raise PromptError("a message's tokens are token ids")
        return checked
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(f"a message is a dictionary of role and content, not {message!r:.80}")
    role = message["role"]
    if role not in ROLES:
        raise PromptError(f"a message's role is one of {', '.join(ROLES)}, not {role!r}")
    content = message.get("content")
    pictures = load_pictures(message.get("images"))
    if isinstance(content, str):
        text = content
    elif isinstance(content, Sequence):
        parts = [_read_part(part) for part in content]
        text = "".join(value for kind, value in parts if kind == "text")
        pictures = (*load_pictures(v for kind, v in parts if kind == "image"), *pictures)
    else:
        raise PromptError(f"a message's content is a text or a list of parts, not {content!r:.80}")
    check_text(text)
    return Message(role, text, pictures)


def _read_part(part: Any) -> tuple[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind == "image" and part.get("image") is not None:
        return "image", part["image"]
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if isinstance(url, str):
            return "image", url
    raise PromptError(f"a part of a message is a text or an image, not {part!r:.80}")
