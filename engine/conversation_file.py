"""A conversation's messages and pictures as one JSON file."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.images import load_picture
from engine.messages import ROLES, Message
from model_kit.files import replacing
from vision_add_ons.errors import ConversationFileError, ImageError

FORMAT = "sightline-conversation-1"


def write(path: Path, messages: Sequence[Message]) -> int:
    """Write messages to `path`, whole or not at all, and return how many bytes.

    Raises `ConversationFileError`.
    """
    pictures = {p.digest: p for m in messages for p in m.pictures}
    content = {
        "format": FORMAT,
        "messages": [
            {
                "role": m.role,
                "text": m.text,
                "tokens": list(m.tokens),
                "pictures": [p.digest for p in m.pictures],
            }
            for m in messages
        ],
        "pictures": {d: base64.b64encode(p.encoded()).decode() for d, p in pictures.items()},
    }
    raw = json.dumps(content).encode()
    try:
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
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # names can be impossible
        raise ConversationFileError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; give the file "
            "that a chat was saved to"
        ) from error
    try:
        content = json.loads(raw)
        if content["format"] != FORMAT:
            raise ValueError("it has a form of another version")
        pictures = {
            digest: load_picture(base64.b64decode(encoded, validate=True))
            for digest, encoded in content["pictures"].items()
        }
        return [_message(m, pictures) for m in content["messages"]]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, ImageError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConversationFileError(
            f"{path} is no conversation that was saved here, or it is damaged "
            f"({type(error).__name__}: {why}); it is left as it is"
        ) from error


def _message(saved: Any, pictures: dict[str, Any]) -> Message:
    role, text, tokens = saved["role"], saved["text"], saved["tokens"]
    if role not in ROLES or not isinstance(text, str):
        raise ValueError("a message has no role or no text")
    if not all(type(t) is int and 0 <= t < 2**31 for t in tokens):
        raise ValueError("a message's tokens are no token ids")
    return Message(role, text, tuple(pictures[d] for d in saved["pictures"]), tuple(tokens))
