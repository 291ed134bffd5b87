"""Whose fault it is that a checkpoint does not load: the error names that, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_kit.names import decoder_name
from vision_add_ons.base import VisionAddOn
from vision_add_ons.errors import (
    AddOnError,
    CheckpointError,
    SightlineError,
    UnknownModelType,
    UnsupportedCheckpoint,
)
from vision_add_ons.json_files import read_json
from vision_add_ons.registry import find_add_on, import_path, served_towers
from vision_add_ons.weights import DERIVED, read_weights

LONGEST_MESSAGE = 400
"""Characters, beside the folder's name."""
TEXT_HALF = (
    "this checkpoint holds the text half only, without the weights of its vision half: load it "
    "with decoder_only=True (on the command line --decoder-only)"
)


@contextmanager
def following(folder: Path, error: type[CheckpointError], why: str) -> Iterator[None]:
    """Whatever code trips over while it follows a checkpoint's files is the checkpoint's fault."""
    try:
        yield
    except UnknownModelType:  # it lists those that are known
        raise
    except SightlineError as e:
        message = _plain(str(e), folder)
        if message == str(e):
            raise
        raise type(e)(message) from e
    except Exception as e:
        raise error(_plain(f"{folder}: {why} ({_said(e)})", folder)) from e


@contextmanager
def running(add_on: type[VisionAddOn]) -> Iterator[None]:
    """What an add-on's own code trips over is the add-on's fault. Raises `AddOnError`."""
    try:
        yield
    except SightlineError:
        raise
    except Exception as e:
        raise AddOnError(
            f"the add-on {import_path(add_on)} failed: {_said(e)}; if no value of config.json is "
            "damaged, tell its author"
        ) from e


@contextmanager
def naming_a_text_half(folder: Path, add_on: type[VisionAddOn] | None) -> Iterator[None]:
    """What a vision half that is not there at all breaks is told as that.

    `add_on` is the one to serve the checkpoint, if the registry is not to say it. Raises
    `UnsupportedCheckpoint`.
    """
    try:
        yield
    except CheckpointError as e:
        if _holds_text_half_only(folder, add_on):
            raise UnsupportedCheckpoint(TEXT_HALF) from e
        raise


def _holds_text_half_only(folder: Path, add_on: type[VisionAddOn] | None) -> bool:
    """Whether there are the decoder's weights and no others, where a vision half belongs."""
    try:
        raw = read_json(folder / "config.json")
        model_type, vision = raw["model_type"], raw.get("vision_config") or {}
        add_on = add_on or find_add_on(model_type, vision.get("model_type"))
        if add_on is None and not (vision or served_towers(model_type)):
            return False
        prefixes = (add_on or VisionAddOn).decoder_prefixes
        names = [name for name in read_weights(folder) if not DERIVED.fullmatch(name)]
    except Exception:  # then that is what is wrong
        return False
    return bool(names) and all(decoder_name(name, prefixes) is not None for name in names)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _plain(message: str, folder: Path) -> str:
    """A message in one line that can be shown: whatever stands in a damaged file may be quoted."""
    if not message.isprintable():
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    longest = LONGEST_MESSAGE + message.count(str(folder)) * len(str(folder))
    return message if len(message) <= longest else message[: longest - 3] + "..."
