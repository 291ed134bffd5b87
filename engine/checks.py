"""What an app hands in is checked where it comes in: typed errors of one line."""

import math
import operator
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from engine.options import GenerationOptions
from vision_add_ons.errors import (
    ContextExceeded,
    ForkedProcess,
    OptionError,
    RequestError,
    SightlineError,
)


def check_process(process: int) -> None:
    """Raises `ForkedProcess` in any other process than the one of this number."""
    if os.getpid() != process:
        raise ForkedProcess(
            "this engine belongs to the process that this one was forked from; start processes by "
            "multiprocessing's 'spawn', and load the model there"
        )


def check_kind(name: str, value: object, kinds: Any, wanted: str) -> None:
    """Raises `OptionError` for what is none of `kinds`, a class or a union of classes."""
    if not isinstance(value, kinds):
        raise OptionError(f"{name} must be {wanted}, not {type(value).__name__}")


def check_options(options: object) -> None:
    """Raises `OptionError` for what is neither None nor `GenerationOptions`."""
    check_kind("options", options, GenerationOptions | None, "GenerationOptions")


def check_cancel(cancel: object) -> None:
    """Raises `OptionError` for what is neither None nor an event of `threading`."""
    check_kind("cancel", cancel, threading.Event | None, "a threading.Event")


def check_callback(name: str, value: object) -> None:
    """Raises `OptionError` for what is neither None nor can be called."""
    if value is not None and not callable(value):
        raise OptionError(f"{name} must be a function, not {type(value).__name__}")


def check_flag(name: str, value: object) -> None:
    """Raises `OptionError` for what is not True or False."""
    check_kind(name, value, bool, "True or False")


def check_bytes(name: str, value: object) -> None:
    """Raises `OptionError` for what is no number of bytes."""
    if type(value) is not int or value < 0:
        told = "a negative number" if type(value) is int else type(value).__name__
        raise OptionError(f"{name} must be a number of bytes, not {told}")


def check_count(name: str, value: object, most: int) -> None:
    """Raises `OptionError` for what is no number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        told = value if type(value) is int and abs(value) < 2**64 else type(value).__name__
        raise OptionError(f"{name} must be a number from 1 to {most}, not {told}")


def check_client(client: object) -> None:
    """Raises `RequestError` for what other clients cannot be told from."""
    try:
        hash(client)
        bool(client == client)
    except Exception as error:
        raise RequestError(
            f"client must be hashable, as a text or a number is, not {type(client).__name__}"
        ) from error


def seconds(timeout: object) -> float | None:
    """How long to wait, as `threading` takes it. Raises `OptionError` for what is no time."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout != timeout:
        raise OptionError(f"timeout must be seconds or None, not {type(timeout).__name__}")
    return min(max(timeout, 0.0), math.floor(threading.TIMEOUT_MAX))


def token_ids(tokens: object, vocab_size: int) -> list[int]:
    """Whatever counts as integers, as a list. Raises `RequestError` for what is no token id."""
    listed = isinstance(tokens, Iterable) and isinstance(tokens, Sized)
    if not listed or isinstance(tokens, str | bytes | bytearray | memoryview | Mapping):
        raise RequestError(f"token ids come as a list, not as {type(tokens).__name__}")
    with reading("the token ids", RequestError):
        return [token_id(token, vocab_size) for token in tokens]  # type: ignore[attr-defined]


def token_id(token: object, vocab_size: int) -> int:
    """An integer that is a token's id. Raises `RequestError`."""
    try:
        number = -1 if isinstance(token, bool) else operator.index(token)  # type: ignore[arg-type]
    except Exception:
        number = -1
    if not 0 <= number < vocab_size:
        raise no_token_id(vocab_size)
    return number


def no_token_id(vocab_size: int) -> RequestError:
    """What is raised for a number that is no token's id."""
    return RequestError(f"token ids must be from 0 to {vocab_size - 1}")


def too_long(tokens: str, context: int) -> ContextExceeded:
    """What is raised for a prompt of so many tokens."""
    # Clients know it by these words, not by the error's code, and then shorten themselves.
    return ContextExceeded(
        f"the prompt is too long for the maximum context length: it has {tokens} tokens, and the "
        f"context ends at {context}; shorten the conversation or start a new one"
    )


def file_name(path: object, what: str, kind: type[SightlineError]) -> str:
    """The path that was given, as a text. Raises a `kind` of error that says what it is for."""
    if isinstance(path, str | os.PathLike):
        with reading(what, kind):  # a path of an app's own class
            return os.fsdecode(path)
    raise kind(f"{what} must be a path, not {type(path).__name__}")


@contextmanager
def reading(what: str, kind: type[SightlineError]) -> Iterator[None]:
    """Objects of an app's own raise what they like when they are read: let it be a `kind`."""
    try:
        yield
    except SightlineError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise kind(f"{what} cannot be read ({type(error).__name__}: {why})") from error
