"""Calls of tools read out of an answer that comes in pieces: all of mlx-lm's forms."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.call_forms import BOTH, CALLS, FORMS, HEADED, NUMBERED, ONE, OTHER, TOOLS, form_of

from engine.events import ToolCall, ToolCallDelta
from engine.tools.arguments import HEADS
from engine.tools.reader import CallForm, CallReader, Told
from engine.tools.tool import read_tools

READ = read_tools(TOOLS)
Part = tuple[str, str]
"""What an answer says ("say"), or a block of calls ("call", or "cut" if its mark is missing)."""


def cut(text: str, draw: random.Random) -> list[str]:
    at, pieces = 0, []
    while at < len(text):
        size = draw.randint(1, 7)
        pieces.append(text[at : at + size])
        at += size
    return pieces


def read(
    form: CallForm, parts: list[Part], seed: int = 0, parallel: bool = True, stopped: bool = True
) -> tuple[CallReader, list[Told]]:
    draw = random.Random(seed)
    reader = CallReader(form, READ, parallel)
    told: list[Told] = []
    for kind, text in parts:
        if kind != "say":
            told += reader.begin(form.start)
        for piece in cut(text, draw):
            told += reader.say(piece) if kind == "say" else reader.call(piece)
        if kind == "call" and form.end:
            told += reader.close(form.end)
    return reader, told + reader.end(stopped)


def said(told: list[Told]) -> str:
    return "".join(one for one in told if isinstance(one, str))


def calls(told: list[Told]) -> list[ToolCall]:
    """The calls that are whole, having held what was told of each before against it."""
    whole = [one for one in told if isinstance(one, ToolCall)]
    for call in whole:
        deltas = [d for d in told if isinstance(d, ToolCallDelta) and d.index == call.index]
        assert "".join(d.arguments for d in deltas) == call.written
        assert {(d.id, d.name) for d in deltas} == {(call.id, call.name)}
        assert json.loads(call.written) == call.arguments
        assert told.index(deltas[-1]) < told.index(call)
    indices = [call.index for call in whole]
    assert indices == sorted(set(indices))
    return whole


def plain(told: list[Told]) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in calls(told)]


@pytest.mark.parametrize("name", FORMS)
def test_one_call_and_two(name: str, seed: int) -> None:
    form = form_of(name)
    reader, told = read(form, [("say", "Let me look.\n\n"), ("call", ONE[name])], seed)
    assert (said(told), plain(told), reader.broken) == ("Let me look.", [CALLS[0]], [])
    if form.end:
        blocks = [("call", ONE[name]), ("say", "\n"), ("call", OTHER[name]), ("say", "\n")]
        reader, told = read(form, blocks, seed)
        assert (said(told), plain(told), reader.broken) == ("", list(CALLS), [])
        assert len({call.id for call in reader.calls}) == 2


@pytest.mark.parametrize("name", sorted(BOTH))
def test_two_calls_in_one_block(name: str, seed: int) -> None:
    _, told = read(form_of(name), [("call", BOTH[name])], seed)
    assert (said(told), plain(told)) == ("", list(CALLS))


def test_names_before_arguments(seed: int) -> None:
    for body, ids in ((HEADED, None), (NUMBERED, ["a1b2c3d4e", "f5g6h7i8j"])):
        reader, told = read(form_of("mistral"), [("call", body)], seed)
        assert (said(told), plain(told)) == ("", list(CALLS))
        assert ids in (None, [call.id for call in reader.calls])


@pytest.mark.parametrize("name", sorted(HEADS))
def test_arguments_come_while_they_are_written(name: str) -> None:
    for bodies in [ONE, BOTH] if name in BOTH else [ONE]:
        reader = CallReader(form_of(name), READ, True)
        reader.begin("")
        counts: dict[int, int] = {}
        for character in bodies[name]:
            for one in reader.call(character):
                assert isinstance(one, ToolCallDelta)
                counts[one.index] = counts.get(one.index, 0) + 1
        assert counts == {i: 1 + len(json.dumps(CALLS[i][1])) for i in counts}
        assert len(counts) == (2 if bodies is BOTH else 1)


def test_ids_of_the_model_s_own() -> None:
    reader, _ = read(form_of("kimi_k2"), [("call", BOTH["kimi_k2"])])
    assert [call.id for call in reader.calls] == ["functions.weather:0", "functions.clock:1"]
    reader, _ = read(form_of("mistral"), [("call", ONE["mistral"])])
    assert len(reader.calls[0].id) == 9
    assert reader.calls[0].id.isalnum()


BROKEN = {
    "cut off": '\n{"name": "weather", "arguments": {"city": "Ul',
    "no JSON": '\n{"name": "weather", "arguments": {"city": Ulm}}\n',
    "a tool that is not there": '\n{"name": "sing", "arguments": {}}\n',
    "no object": '\n{"name": "weather", "arguments": [1]}\n',
    "a number that is none": '\n{"name": "weather", "arguments": {"days": NaN}}\n',
    "half a character": '\n{"name": "weather", "arguments": {"city": "\\ud800"}}\n',
    "no name": '\n{"arguments": {}}\n',
    "a text": "weather in Ulm",
    "nothing": "",
    "nested deep": '\n{"name": "weather", "arguments": ' + '{"a":' * 5000,
    "a long number": '\n{"name": "weather", "arguments": {"days": ' + "1" * 5000 + "}}\n",
    "two in one": ONE["json_tools"] * 2,
}


@pytest.mark.parametrize("body", list(BROKEN.values()), ids=list(BROKEN))
def test_what_is_no_call_is_said(body: str, seed: int) -> None:
    raw = f"<tool_call>{body}</tool_call>"
    blocks = [("say", "A:\n"), ("call", body), ("say", "B")]
    reader, told = read(form_of("json_tools"), blocks, seed)
    assert said(told) == f"A:\n{raw}\nB"
    assert (reader.broken, calls(told)) == ([raw], [])
    # One that is broken takes nothing from another.
    reader, told = read(form_of("json_tools"), [("call", body), ("call", ONE["json_tools"])], seed)
    assert (said(told), plain(told), reader.broken) == (raw, [CALLS[0]], [raw])


@pytest.mark.parametrize("name", FORMS)
def test_a_block_without_its_end(name: str, seed: int) -> None:
    form = form_of(name)
    _, told = read(form, [("cut", ONE[name])], seed)
    assert plain(told) == [CALLS[0]]
    if form.end:  # cut off by a limit, it may be half a call that looks like a whole one
        reader, told = read(form, [("cut", ONE[name])], seed, stopped=False)
        assert (said(told), reader.calls) == (form.start + ONE[name], [])


@pytest.mark.parametrize("name", ["kimi_k3", "minimax_m2", "qwen3_coder"])
def test_what_a_parser_leaves_out_is_said(name: str) -> None:
    body = ONE[name] + OTHER[name][: len(OTHER[name]) // 2]
    form = form_of(name)
    reader, told = read(form, [("call", body)])
    if not reader.calls:  # the parser refused all of it
        assert name == "qwen3_coder"
    assert said(told) == form.start + body + form.end
    assert len(reader.broken) == 1


@pytest.mark.parametrize("name", ["json_tools", "mistral"])
def test_one_call_at_most(name: str, seed: int) -> None:
    reader, told = read(form_of(name), [("call", ONE[name])], seed, parallel=False)
    assert reader.enough
    assert plain(told) == [CALLS[0]]
    if name in BOTH:  # what comes at the end alone cannot be stopped
        reader, told = read(form_of(name), [("call", BOTH[name])], seed, parallel=False)
        assert plain(told) == [CALLS[0]]
        assert said(told) == form_of(name).start + BOTH[name]


def test_blanks_without_a_call_stay() -> None:
    for text in ("\n", " a\n", "a \n b  ", ""):
        _, told = read(form_of("json_tools"), [("say", text)])
        assert said(told) == text


WRITTEN = st.text("{}[]<>/\"\\:,=\n aefnu|'()-_1.", max_size=40) | st.sampled_from(
    [text for bodies in (ONE, OTHER, BOTH) for text in bodies.values()]
)


@given(
    name=st.sampled_from(FORMS),
    parts=st.lists(st.tuples(st.sampled_from(["say", "call"]), WRITTEN), max_size=5),
    last=st.none() | WRITTEN,
    mixed=st.randoms(use_true_random=False),
    parallel=st.booleans(),
    stopped=st.booleans(),
)
def test_nothing_is_lost(
    name: str,
    parts: list[Part],
    last: str | None,
    mixed: random.Random,
    parallel: bool,
    stopped: bool,
) -> None:
    form = form_of(name)
    if not form.end:  # nothing comes behind a block
        parts = [part for part in parts if part[0] == "say"] + [
            ("call", "".join(mixed.choices("a[{", k=3)))
        ]
    elif last is not None:
        parts = [*parts, ("cut", last)]
    reader, told = read(form, parts, mixed.randrange(100), parallel, stopped)
    text = said(told)
    calls(told)
    left = text
    for kind, own in parts:
        raw = own if kind == "say" else form.start + own + (form.end if kind == "call" else "")
        if kind == "say" or raw in reader.broken:
            for word in raw.split():
                place = left.find(word)
                assert place >= 0, (word, text)
                left = left[place + len(word) :]
    blocks = [own for kind, own in parts if kind != "say"]
    assert len(reader.broken) <= len(blocks)
    if not reader.calls:
        assert len(reader.broken) == len(blocks)
    assert parallel or len(reader.calls) <= len(blocks)
