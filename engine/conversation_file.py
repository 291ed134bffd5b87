"""A conversation's messages and pictures as one JSON file."""

import base64
import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.images import ImageLimits, load_picture
from engine.prompts.messages import Message
from model_kit.files import replacing
from vision_add_ons.errors import ConversationFileError, ImageError, PromptError

FORMAT = "sightline-conversation-2"
FORMAT_1 = "sightline-conversation-1"
"""The form before messages had parts: all pictures of a message stood before its text."""
# What reading can raise where the file is not as `write` left it.
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, RecursionError, ImageError, PromptError)


def write(path: Path, messages: Sequence[Message]) -> int:
    """Write messages to `path`, whole or not at all, and return how many bytes.

    Raises `ConversationFileError`.
    """
    pictures = {p.digest: p for m in messages for p in m.images}
    content = {
        "format": FORMAT,
        "messages": [_saved(m) for m in messages],
        "pictures": {d: base64.b64encode(p.encoded()).decode() for d, p in pictures.items()},
    }
    raw = json.dumps(content).encode()
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        with replacing(path) as temporary:
            temporary.write_bytes(raw)
    except (OSError, ValueError) as error:  # names can be impossible
        raise ConversationFileError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}; what it held "
            "is as it was"
        ) from error
    return len(raw)


def read(path: Path) -> list[Message]:
    """The messages of a file that `write` made. Raises `ConversationFileError`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for somebody to write
            raise ValueError("it is no file")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # names can be impossible
        raise ConversationFileError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; give the file "
            "that a chat was saved to"
        ) from error
    try:
        content = json.loads(raw)
        read_message = {FORMAT: _message, FORMAT_1: _message_1}.get(content["format"])
        if read_message is None:
            raise ValueError("it has a form of another version")
        # As a PNG, a picture can have more bytes than it came with; it is in memory as it is.
        limits = ImageLimits(max_bytes=len(raw))
        pictures = {
            digest: load_picture(base64.b64decode(encoded, validate=True), limits)
            for digest, encoded in content["pictures"].items()
        }
        messages = [read_message(m, pictures) for m in _list(content["messages"])]
        return whole(messages)
    except _DAMAGE as error:
        why = " ".join(str(error).split())[:200]
        raise ConversationFileError(
            f"{path} is no conversation that was saved here, or it is damaged "
            f"({type(error).__name__}: {why}); it is left as it is"
        ) from error


def _saved(message: Message) -> dict[str, Any]:
    others = {
        "tokens": list(message.tokens),
        "reasoning": message.reasoning,
        "tool_calls": list(message.tool_calls),
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    parts = [{"text": p} if isinstance(p, str) else {"image": p.digest} for p in message.parts]
    return {"role": message.role, "parts": parts, **{k: v for k, v in others.items() if v}}


def _message(saved: Any, pictures: dict[str, Any]) -> Message:
    others = {k: v for k, v in saved.items() if k not in ("role", "parts")}
    parts = [_part(part, pictures) for part in _list(saved["parts"])]
    for name in ("tokens", "tool_calls"):
        _list(others.get(name, []))
    return Message(saved["role"], parts, **others)


def _part(saved: Any, pictures: dict[str, Any]) -> Any:
    ((kind, value),) = saved.items()
    return pictures[value] if kind == "image" else {"text": value}[kind]


def _list(saved: Any) -> list[Any]:
    if not isinstance(saved, list):
        raise ValueError(f"it has {type(saved).__name__} in place of a list")
    return saved


def _message_1(saved: Any, pictures: dict[str, Any]) -> Message:
    if not isinstance(saved["text"], str):
        raise ValueError("a message has no text")
    shown = tuple(pictures[d] for d in saved["pictures"])
    return Message(saved["role"], (*shown, saved["text"]), tuple(saved["tokens"]))


def whole(messages: list[Message]) -> list[Message]:
    """The messages, if they are what a chat's history can be: anything else fails at its end.

    Raises `PromptError`.
    """
    # Perhaps a system message; then questions, each with calls of tools, if any, and an answer.
    if re.fullmatch("s?(u(at+)*a)*", "".join(m.role[0] for m in messages)) is None:
        raise PromptError("the messages are no questions with their answers")
    return messages
