"""Whatever an app hands in: a typed error or an answer, and the engine goes on."""

import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.seeds import SWEEP

import engine as public
from engine import (
    Chat,
    Engine,
    Generation,
    GenerationOptions,
    LoadedPicture,
    Message,
    Request,
    Schema,
    SightlineError,
    Tool,
    load,
    load_picture,
)
from engine.images import ImageLimits

WAIT = 600
SHORT = GenerationOptions(max_tokens=2)


class Hostile:
    """Raises whatever is done with it."""

    def _raise(self, *_: Any) -> Any:
        raise RuntimeError("not with me")

    __str__ = __repr__ = __eq__ = __hash__ = __len__ = __iter__ = __bool__ = _raise  # type: ignore[assignment]
    __getitem__ = __contains__ = __index__ = __int__ = __float__ = __fspath__ = _raise
    __format__ = _raise  # type: ignore[assignment]


class HostileList(list[Any]):
    """Passes for a sequence, until it is read."""

    __len__ = __iter__ = __getitem__ = __bool__ = Hostile._raise  # type: ignore[assignment]


class HostileDict(dict[Any, Any]):
    """Passes for a mapping, until it is read."""

    __len__ = __iter__ = __getitem__ = __bool__ = get = items = Hostile._raise  # type: ignore[assignment]


class HostilePath(os.PathLike[str]):
    """Passes for a path, until it is read."""

    __fspath__ = __str__ = __repr__ = Hostile._raise  # type: ignore[assignment]


class Lying:
    """Says that it is equal to everything, and is no text."""

    def __eq__(self, _: object) -> Any:
        return "no truth value"

    def __hash__(self) -> int:
        return 0

    def __fspath__(self) -> Any:
        return 5


MAKE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "5": lambda: 5,
    "10**30": lambda: 10**30,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "-inf": lambda: float("-inf"),
    "complex": lambda: 1j,
    "bytes": lambda: b"",
    "some bytes": lambda: b"\xff\x00abc",
    "bytearray": lambda: bytearray(b"abc"),
    "memoryview": lambda: memoryview(b"abc"),
    "''": lambda: "",
    "a text": lambda: "abc",
    "NUL": lambda: "a\0b",
    "half a character": lambda: "a\ud800",
    "a long name": lambda: "x" * 5000,
    "~nobody": lambda: "~nobody-of-that-name/x",
    "[]": list,
    "[None]": lambda: [None],
    "[[]]": lambda: [[]],
    "['a']": lambda: ["a"],
    "ids": lambda: [5, 6],
    "bad ids": lambda: [5, -1],
    "huge ids": lambda: (2**70,),
    "mixed": lambda: [1, "a", {}],
    "{}": dict,
    "{1: 2}": lambda: {1: 2},
    "set": lambda: {1, 2},
    "a message": lambda: [{"role": "user", "content": "Hi"}],
    "no message": lambda: [{"role": "user", "content": {}}],
    "bad parts": lambda: [{"role": "user", "content": [{"type": "image", "image": Hostile()}]}],
    "bad role": lambda: [{"role": [], "content": "Hi"}],
    "messages": lambda: [Message("user", "Hi"), Message("assistant", "Ho")],
    "bad text": lambda: [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    "bad pictures": lambda: [{"role": "user", "content": "Hi", "images": 5}],
    "bad tokens": lambda: [{"role": "user", "content": "Hi", "tokens": 5}],
    "half a message": lambda: [{"role": "user", "content": "\ud800"}],
    "object": object,
    "lambda": lambda: lambda *_: None,
    "a class": lambda: ValueError,
    "a generator": lambda: (c for c in "ab"),
    "an exception": lambda: ValueError("x"),
    "an event": threading.Event,
    "options": lambda: SHORT,
    "limits": lambda: ImageLimits("a", Hostile()),  # type: ignore[arg-type]
    "an image": lambda: Image.new("RGB", (2, 2)),
    "an empty image": lambda: Image.new("L", (0, 0)),
    "a picture": lambda: load_picture(Image.new("RGB", (3, 2))),
    "a folder": lambda: Path("."),
    "a path": lambda: Path("nothing") / "there",
    "hostile": Hostile,
    "[hostile]": lambda: [Hostile()],
    "a hostile list": lambda: HostileList([1]),
    "a hostile dict": lambda: HostileDict({"role": "user"}),
    "[a hostile dict]": lambda: [HostileDict({"role": "user"})],
    "a hostile path": lambda: HostilePath(),
    "lying": Lying,
}

Target = Callable[[Engine, Path], Callable[..., Any]]

TARGETS: dict[str, Target] = {
    "load": lambda engine, folder: load,
    "load_picture": lambda engine, folder: load_picture,
    "Request": lambda engine, folder: Request,
    "Tool": lambda engine, folder: Tool,
    "Tool.of": lambda engine, folder: Tool.of,
    "Schema": lambda engine, folder: Schema,
    **{
        f"Schema.{name}": lambda engine, folder, name=name: getattr(Schema, name)
        for name in ("json", "regex", "grammar", "choices", "of")
    },
    "Message": lambda engine, folder: Message,
    "LoadedPicture": lambda engine, folder: LoadedPicture,
    "LoadedPicture.within": lambda engine, folder: load_picture(Image.new("RGB", (9, 2))).within,
    "Generation.result": lambda engine, folder: engine.generate("abc", options=SHORT).result,
    **{
        f"Engine.{name}": lambda engine, folder, name=name: getattr(engine, name)
        for name in (
            "chat",
            "generate",
            "submit",
            "save",
            "load_adapter",
            "tokenize",
            "detokenize",
            "token_bytes",
        )
    },
    **{
        f"Chat.{name}": lambda engine, folder, name=name: getattr(engine.chat(options=SHORT), name)
        for name in ("send", "save", "reset")
    },
}

RIGHT: dict[str, Callable[[Path], Any]] = {
    "model": lambda folder: folder,
    "source": lambda folder: Image.new("RGB", (2, 2)),
    "prompt": lambda folder: "abc",
    "request": lambda folder: Request("abc", options=SHORT),
    "path": lambda folder: "saved",
    "folder": lambda folder: "adapter",
    "text": lambda folder: "abc",
    "content": lambda folder: "abc",
    "tokens": lambda folder: [5, 6],
    "token": lambda folder: 5,
    "messages": lambda folder: (),
    "owner": lambda folder: None,
    "options": lambda folder: SHORT,
    "role": lambda folder: "user",
    "pixels": lambda folder: Image.new("RGB", (2, 2)),
    "longest": lambda folder: 4,
    "vocab_only": lambda folder: True,
    "kind": lambda folder: "regex",
    "schema": lambda folder: {"type": "integer"},
    "pattern": lambda folder: "a",
    "lark": lambda folder: 'start: "a"',
    "texts": lambda folder: ["a"],
    "given": lambda folder: ["a"],
    "name": lambda folder: "f",
}
"""What each parameter is given where another one is tried; the others have defaults."""

NO_ARGUMENTS = {
    "Chat.messages",
    "Engine.__enter__",
    "Engine.cache_stats",
    "Engine.check_process",
    "Engine.close",
    "Engine.unload_adapter",
    "Generation.cancel",
    "LoadedPicture.encoded",
    "LoadedPicture.pixels",
    "LoadedPicture.release",
}
MADE_BY_OTHERS = {"Chat", "Engine", "Generation"}
"""Classes whose docstrings say who makes them."""
FOR_THE_ENGINE = {"Generation.emit", "Generation.finish"}
VALUES = {"Event", "FinishReason", "Finished", "GenerationOptions", "Progress", "TextDelta"}
VALUES |= {"ToolCall", "ToolCallDelta"}
"""What the engine tells; and the options, whose tests go through every value."""


def test_nothing_public_is_left_out() -> None:
    found = set()
    for name in public.__all__:
        value = getattr(public, name)
        if name in VALUES or (isinstance(value, type) and issubclass(value, SightlineError)):
            continue
        if name not in MADE_BY_OTHERS:
            found.add(name)
        if isinstance(value, type):
            methods = inspect.getmembers(
                value, lambda m: inspect.isfunction(m) or inspect.ismethod(m)
            )
            found |= {f"{name}.{m}" for m, _ in methods if not m.startswith("_")}
    assert found - NO_ARGUMENTS - FOR_THE_ENGINE == set(TARGETS)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts may become files, and names may be asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", TARGETS)
def test_every_argument_of_every_kind(name: str, letters: Engine, letters_folder: Path) -> None:
    target = TARGETS[name](letters, letters_folder)
    for parameter in inspect.signature(target).parameters:
        for value in MAKE:
            check(name, letters, letters_folder, {parameter: value})
    assert letters.generate("abc", options=SHORT).result(WAIT).answer


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", TARGETS)
@settings(
    max_examples=100 if SWEEP else 10,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_several_at_once(
    name: str, letters: Engine, letters_folder: Path, data: st.DataObject
) -> None:
    parameters = list(inspect.signature(TARGETS[name](letters, letters_folder)).parameters)
    values = st.sampled_from(sorted(MAKE))
    wrong = data.draw(st.dictionaries(st.sampled_from(parameters), values, min_size=1))
    check(name, letters, letters_folder, wrong)
    assert letters.generate("abc", options=SHORT).result(WAIT).answer


def check(name: str, letters: Engine, folder: Path, wrong: dict[str, str]) -> None:
    target = TARGETS[name](letters, folder)
    parameters = inspect.signature(target).parameters
    arguments = {p: RIGHT[p](folder) for p in parameters if p in RIGHT}
    arguments |= {parameter: MAKE[value]() for parameter, value in wrong.items()}
    try:
        end(target(**arguments))
    except SightlineError as error:
        told = str(error)
    except TimeoutError:
        told = "in time" if name == "Generation.result" else ""
    except BaseException as error:
        pytest.fail(f"{name} with {wrong} raised {error!r}", pytrace=False)
    else:
        told = "it works"
    assert len(told.splitlines()) == 1, (name, wrong, told)


def end(result: Any) -> None:
    if isinstance(result, Engine):
        result.close()
    elif isinstance(result, Generation):
        result.result(WAIT)
    elif isinstance(result, Chat):
        result.send("Hi").cancel()
    elif isinstance(result, Request):
        pass
    elif hasattr(result, "exception"):
        result.result(WAIT)
