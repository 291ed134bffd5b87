"""The options that `chat` and `generate` share. Defaults stand in `Engine.default_options`."""

import argparse
import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.options import GenerationOptions

if TYPE_CHECKING:
    from engine.images import LoadedPicture

_GENERATION: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "the most tokens of an answer"),
    "temperature": (float, "0 takes the likeliest token, more draws more freely"),
    "top_p": (float, "draw from the likeliest tokens that together have this probability"),
    "top_k": (int, "draw from so many likeliest tokens; 0 for all"),
    "min_p": (float, "draw from tokens at least this likely, relative to the likeliest"),
    "seed": (int, "draw the same again; a fresh one if not given"),
    "repetition_penalty": (float, "above 1, recent tokens become less likely"),
    "max_thinking_tokens": (int, "end a thought when it has so many tokens"),
    "draft_tokens": (int, "tokens that a draft guesses at once; 0 for none (default: what pays)"),
    "max_image_size": (int, "shrink pictures whose longer side has more pixels than this"),
    "max_context": (int, "a cap on prompt and answer together, in tokens"),
    "kv_bits": (int, "quantize long KV caches to 2, 4 or 8 bits"),
    "kv_group_size": (int, "values that share a scale in a quantized KV cache"),
    "prefill_step_size": (int, "prompt tokens run at once"),
}

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What a checkpoint may have its own defaults of, see `Engine.default_options`."""

MODEL = (
    "a short name (see `sightline models`), an id of the Hugging Face hub (org/name, or "
    "org/name@revision), or the folder of a checkpoint"
)


def text(value: str) -> str:
    """A text from the command line, without the surrogates that stand for undecodable bytes."""
    return os.fsencode(value).decode("utf-8", "replace")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to ask which model, and how it answers."""
    add = parser.add_argument
    add("--system", type=text, metavar="TEXT", help="how the model should behave")
    several = "; may be given several times"
    images = "a picture for the first message" + several
    add("--image", action="append", default=[], metavar="FILE", help=images)

    add_loading(parser)

    add = parser.add_argument_group("generation").add_argument
    defaults = {field.name: field.default for field in fields(GenerationOptions)}
    for name, (kind, about) in _GENERATION.items():
        if name in SAMPLING:
            about += f" (default the model's, else {defaults[name]})"
        elif defaults[name] is not None:
            about += f" (default {defaults[name]})"
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=kind, metavar="N" if kind is int else "X", help=about)
    thinking = "have the model think before it answers, or not; else as its chat template has it"
    add("--thinking", action=argparse.BooleanOptionalAction, help=thinking)
    stop = "end the answer before this text" + several
    add("--stop", type=text, action="append", metavar="TEXT", help=stop)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded: what `loading.open_engine` reads."""
    add = parser.add_argument_group("loading").add_argument
    add("--model", default="demo", metavar="MODEL", help=f"{MODEL} (default demo)")
    add("--decoder-only", action="store_true", help="load a vision model's text half alone")
    add("--adapter", metavar="DIR", help="a low-rank adapter for the decoder, in mlx-lm's format")
    draft = "a smaller model that guesses the answers ahead, or lookup, which needs none"
    add("--draft", metavar="MODEL", help=draft)
    add("--cache-bytes", type=int, metavar="N", help="the most that the prompt cache may take")
    add("--memory-bytes", type=int, metavar="N", help="the most memory that the model may take")
    add("--cache-dir", metavar="DIR", help="keep conversations' KV caches in this folder")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of `GenerationOptions` that the user gave. Raises `OptionError`."""
    values = {name: getattr(args, name) for name in (*_GENERATION, "thinking", "stop")}
    given = {name: value for name, value in values.items() if value is not None}
    GenerationOptions(**given)  # before a model is loaded for them
    return given


def read_path(typed: str) -> Path:
    """A path as people type or drop it: with ~, with spaces, quoted, or with escaped spaces."""
    if not os.path.exists(os.path.expanduser(typed)):
        with suppress(ValueError):  # a quote that is part of the name
            words = shlex.split(typed)
            typed = words[0] if len(words) == 1 else typed
    return Path(os.path.expanduser(typed))


def read_pictures(files: Iterable[str]) -> "list[tuple[Path, LoadedPicture]]":
    """Pictures decoded, so that a bad one is known at once. Raises `ImageError`."""
    pictures = []
    for file in files:
        from engine.images import load_picture

        path = read_path(file)
        picture = load_picture(path)
        picture.release()
        pictures.append((path, picture))
    return pictures
