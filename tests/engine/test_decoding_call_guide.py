"""Calls that a model begins of its own accord are what their schemas say; the rest is its own."""

from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import mlx.core as mx
import pytest
from support import recited
from support.at_once import all_at_once

from engine import Engine, Finished, GenerationOptions, Request, Tool, load
from engine.decoding.call_guide import CallGuide
from engine.decoding.drawn import Drawn
from engine.tools import asking
from engine.tools.grammar import block_grammar
from engine.tools.tool import read_tools

MARKS = ("<tool_call>", "</tool_call>")
THOUGHT = ("<think>", "</think>")
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Ulm", "Bonn"]}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
RUBBISH = ["Let me", " look.", "\n", "<tool_call>", '{"name": "sing"}', "</tool_call>"]
SCRIPTS: dict[int | str, Any] = {
    1: RUBBISH,
    2: ["No ", "call ", "at ", "all."],
    3: ["<think>", "Hm ", "hm ", "hm ", "hm", "</think>", "Yes."],
}
Made = Callable[..., Engine]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Engines whose model says what it is told to, and calls in a way that is none."""
    engines: dict[int, Engine] = {}

    def make(parallel: int = 1) -> Engine:
        if parallel not in engines:
            folder = tmp_path_factory.mktemp("calls") / "model"
            recited.save(folder, SCRIPTS, added=(*MARKS, *THOUGHT))
            engines[parallel] = load(folder, parallel=parallel)
        return engines[parallel]

    yield make
    for engine in engines.values():
        engine.close()


def asked(engine: Engine, count: int = 1, tools: Any = (WEATHER,), **more: Any) -> Any:
    """What is answered to so many messages."""
    messages = [{"role": "user", "content": "Hi"}] * count
    options = GenerationOptions(max_tokens=200, **more)
    return engine.submit(Request(messages, options=options, tools=tools))


def holds(end: Finished, answer: str = "Let me look.") -> None:
    assert (end.answer, end.finish_reason, end.broken_calls) == (answer, "tool_calls", ())
    (call,) = end.tool_calls
    assert call.name == "weather"
    jsonschema.validate(dict(call.arguments), WEATHER["parameters"])  # type: ignore[arg-type]


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_call_that_it_begins(made: Made, parallel: int) -> None:
    engine = made(parallel)
    with all_at_once(engine):
        calling = [asked(engine), asked(engine, temperature=0.5, seed=3)]
        plain = [asked(engine, 2), asked(engine, 2, ())]
    for generation in calling:
        holds(generation.result())
    ends = [generation.result() for generation in plain]
    assert [end.answer for end in ends] == ["No call at all."] * 2
    assert ends[0].tokens == ends[1].tokens
    assert calling[0].result().tokens == asked(made()).result().tokens
    # Without tools a model may write what it will.
    assert '{"name": "sing"}' in asked(engine, 1, ()).result().answer


def test_a_call_behind_a_thought_that_is_bounded(made: Made) -> None:
    engine = made()
    end = asked(engine, max_thinking_tokens=2).result()
    holds(end)
    end = asked(engine, 3, max_thinking_tokens=2).result()
    assert (end.reasoning, end.reasoning_tokens, end.finish_reason) == ("Hm hm", 2, "stop")
    assert end.answer == "Yes."


def test_where_a_call_cannot_be_held(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the model's own, and no answer fails of that."""
    engine = made()
    odd = {"properties": {"a": {"$ref": "#/nowhere"}}}
    for tool in (Tool("odd", "", odd), Tool("odd", "", odd, strict=True)):
        end = asked(engine, tools=[tool]).result()
        assert end.broken_calls == ('<tool_call>{"name": "sing"}</tool_call>',)
    wordy = {"name": "wordy", "parameters": {"properties": {"a": {"enum": ["\u00e9" * 300_000]}}}}
    message = [{"role": "user", "content": "Hi"}]  # the tool would not fit in the prompt
    request = Request(message, tools=[wordy])
    assert asking.guide_of(request, engine._builder(), engine._guides, None) is None
    monkeypatch.setattr(asking, "SECONDS", 0.0)
    late = {**WEATHER, "name": "late"}
    end = asked(engine, tools=[late]).result()
    assert len(end.broken_calls) + len(end.tool_calls) == 1


def test_nobody_waits_outside_calls(made: Made) -> None:
    engine = made()
    builder, guides = engine._builder(), engine._guides
    assert guides is not None
    grammar = block_grammar(builder.telling.form, read_tools([WEATHER]), True, builder.token_of)
    mark, end, other = (builder.token_of(text) for text in (*MARKS, "a"))
    assert grammar is not None
    assert mark is not None
    guide = CallGuide(mark, guides.guide(grammar), True, None)
    waited = []

    class Watched(Drawn):
        @property
        def _values(self) -> list[int]:  # type: ignore[override]
            waited.append(1)
            return [int(token) for token in self._tokens.tolist()]  # type: ignore[union-attr]

    def after(token: Any) -> Any:
        return guide.after(Watched(mx.array([token]), mx.zeros(1))[0])

    assert guide.after(None) is None
    for token in (other, end, other):
        assert mx.all(after(token)).item()
    behind = after(mark)
    assert not waited
    newline = builder.token_of("\n")
    assert [i for i, fits in enumerate(behind.tolist()) if fits] == [newline]
    text = '\n{"name": "weather", "arguments": {"city": "Ulm"}}\n'
    for token in engine.tokenize(text):
        assert not mx.all(after(token)).item()
    assert len(waited) == len(text)
    assert mx.all(after(end)).item()
    del waited[:]
    assert mx.all(after(other)).item()
    assert not waited
    # And the next one is held like the first.
    assert not mx.all(after(mark)).item()
