"""mlx-lm's parsers on whatever a model says: one kind of error, and bounded time."""

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.call_forms import CALLS, FORMS, ONE, TOOLS, form_of

from engine.tools.parsing import MOST_CALL, RUNNING, SHORT, BrokenCall, Parser
from engine.tools.tool import read_tools

READ = read_tools(TOOLS)


@pytest.mark.parametrize("name", FORMS)
@given(data=st.data())
def test_any_text(name: str, data: st.DataObject) -> None:
    """Pieces of calls, put together as they come."""
    piece = st.text(max_size=8) | st.sampled_from([ONE[name][:20], ONE[name][20:], ONE[name]])
    text = "".join(data.draw(st.lists(piece, max_size=4)))
    try:
        calls, _ = form_of(name).parser.read(text[: SHORT - 1], READ)
    except BrokenCall:
        return
    assert calls
    assert all(call.name in ("weather", "clock") for call in calls)


@pytest.mark.parametrize("name", FORMS)
def test_a_long_call(name: str) -> None:
    """On a thread of its own."""
    text = ONE[name].replace("Ulm, ", "Ulm, " + "a line of text; " * 4000)
    (call,), whole = form_of(name).parser.read(text, READ)
    assert whole
    assert len(call.arguments["city"]) > 60_000
    assert call.arguments["days"] == CALLS[0][1]["days"]


def test_garbage_that_takes_minutes() -> None:
    """Which `gemma4`'s pattern does, going as the cube of the length."""
    parser = form_of("gemma4").parser
    quick = Parser(parser._parse, "gemma4", seconds=0.2)
    with pytest.raises(BrokenCall):
        quick.read("call:weather{" * 300, READ)


def test_no_more_than_some_at_a_time() -> None:
    ends = threading.Event()

    def parse(text: str, tools: Any) -> Any:
        ends.wait(600)
        return {"name": "clock", "arguments": {}}

    parser = Parser(parse, "slow", seconds=0.01)
    for _ in range(RUNNING):
        with pytest.raises(BrokenCall, match="seconds"):
            parser.read("x" * 1000, READ)
    with pytest.raises(BrokenCall, match="others"):
        parser.read("x" * 1000, READ)
    ends.set()
    deadline = time.monotonic() + 600
    patient = Parser(parse, "slow")
    patient._places = parser._places
    while True:  # until those threads have seen it
        try:
            assert patient.read("x" * 1000, READ)[0][0].name == "clock"
            break
        except BrokenCall:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_text_that_is_too_long() -> None:
    def parse(text: str, tools: Any) -> Any:
        raise AssertionError

    with pytest.raises(BrokenCall, match="characters"):
        Parser(parse, "x").read("x" * (MOST_CALL + 1), READ)


@pytest.mark.parametrize(
    "made",
    [
        None,
        5,
        [],
        [None],
        {},
        {"name": None},
        {"name": ["clock"]},
        {"name": "sing", "arguments": {}},
        {"name": "clock", "arguments": None},
        {"name": "clock", "arguments": "{"},
        {"name": "clock", "arguments": "[]"},
        {"name": "clock", "arguments": '{"a":' * 101 + "1" + "}" * 101},
        {"name": "clock", "arguments": {"a": {1, 2}}},
        {"name": "clock", "arguments": {"a": b"x"}},
        {"name": "clock", "arguments": {"a": float("inf")}},
        {"name": "clock", "arguments": {"a": "\ud800"}},
        {"name": "clock", "arguments": {(1, 2): 3}},
        [{"name": "clock"}, {"name": "sing"}],
    ],
    ids=repr,
)
def test_what_a_parser_makes_is_checked(made: Any) -> None:
    with pytest.raises(BrokenCall):
        Parser(lambda text, tools: made, "x").read("x", READ)


@pytest.mark.parametrize(
    "error", [ValueError, RecursionError, MemoryError, OverflowError, KeyError]
)
def test_whatever_a_parser_raises(error: type[Exception]) -> None:
    def parse(text: str, tools: Any) -> Any:
        raise error("x")

    for text in ("x", "x" * 1000):
        with pytest.raises(BrokenCall):
            Parser(parse, "x").read(text, READ)


def test_arguments_become_plain_json() -> None:
    made = {"name": "clock", "arguments": {"a": (1, 2), 3: None}, "id": "x" * 200}
    (call,), _ = Parser(lambda text, tools: made, "x").read("x", READ)
    assert (call.arguments, call.id) == ({"a": [1, 2], "3": None}, None)
    written = {"name": "clock", "arguments": '{"a": 1}', "id": "x"}
    (call,), _ = Parser(lambda text, tools: written, "x").read("x", READ)
    assert (call.arguments, call.id) == ({"a": 1}, "x")
