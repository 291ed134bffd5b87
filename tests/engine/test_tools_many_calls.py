"""A model that would go on calling for ever comes to an end, with whole calls."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support import recited
from support.call_forms import MARKS

from engine import Engine, GenerationOptions, Request, load
from engine.tools import grammar, reader
from engine.tools.grammar import calls_grammar
from engine.tools.reader import CallForm
from engine.tools.tool import MOST_CALLS, read_tools

GO = {"name": "go", "parameters": {"additionalProperties": False}}
END = 2
"""The token that ends an answer."""


@pytest.fixture(scope="module", params=sorted(MARKS))
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(form: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp(form) / "model"
    recited.save(folder, {}, parser=form, added=MARKS[form])
    with load(folder) as engine:
        yield engine


def never_ending(engine: Engine) -> dict[int, float]:
    """What a model has that would rather do anything than end, or end a list."""
    closing = [engine._builder().token_of(text) for text in ("]", "<|tool_calls_section_end|>")]
    return dict.fromkeys([END, *(token for token in closing if token is not None)], -100.0)


def asked(engine: Engine, **more: Any) -> Any:
    options = GenerationOptions(max_tokens=4000, logit_bias=never_ending(engine))
    messages = [{"role": "user", "content": "Go!"}]
    return engine.submit(Request(messages, options=options, tools=[GO], **more)).result()


def test_they_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer than there may be, for they take their time; the grammar alone is asked below."""
    for module in (grammar, reader):
        monkeypatch.setattr(module, "MOST_CALLS", 5)
    end = asked(engine, tool_choice="required")
    assert (end.finish_reason, end.answer, end.broken_calls) == ("tool_calls", "", ())
    assert [call.name for call in end.tool_calls] == ["go"] * 5
    assert len({call.id for call in end.tool_calls}) == 5


@pytest.mark.parametrize(
    "more", [{"tool_choice": "go"}, {"tool_choice": "required", "parallel_tool_calls": False}]
)
def test_one_is_one(engine: Engine, more: dict[str, Any]) -> None:
    end = asked(engine, **more)
    assert (end.finish_reason, len(end.tool_calls)) == ("tool_calls", 1)


def test_the_grammar_takes_so_many_and_no_more(engine: Engine, form: str) -> None:
    """By itself, whatever reads the calls."""
    known: CallForm = engine._builder().telling.form
    guides, token_of = engine._guides, engine._builder().token_of
    assert guides is not None
    several = calls_grammar(known, read_tools([GO]), True, None, token_of)
    body = {
        "json_tools": '<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>',
        "mistral": '{"name": "go", "arguments": {}}',
        "kimi_k2": (
            "<|tool_call_begin|>functions.go:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
        ),
        "qwen3_coder": "<tool_call>\n<function=go>\n</function>\n</tool_call>",
    }[form]
    before, between, after = {
        "json_tools": ("", "\n", ""),
        "mistral": ("[TOOL_CALLS][", ", ", "]"),
        "kimi_k2": (known.start, "", known.end),
        "qwen3_coder": ("", "\n", ""),
    }[form]
    for count, fits in ((1, True), (MOST_CALLS, True), (MOST_CALLS + 1, False)):
        tokens = engine.tokenize(before + between.join([body] * count) + after)
        matcher = guides._compile(several)
        assert matcher.consume_tokens(tokens) == fits
        assert matcher.is_stopped() == (count >= MOST_CALLS or bool(after))


@pytest.mark.parametrize("form", ["mistral"], indirect=True)
def test_so_many_behind_their_names(engine: Engine) -> None:
    """As Mistral's later templates have them."""
    guides, builder = engine._guides, engine._builder()
    assert guides is not None
    headed = replace(builder.telling.form, headed=True)
    several = calls_grammar(headed, read_tools([GO]), True, None, builder.token_of)
    for count in (MOST_CALLS, MOST_CALLS + 1):
        matcher = guides._compile(several)
        tokens = engine.tokenize("[TOOL_CALLS]go[ARGS]{}" * count)
        assert matcher.consume_tokens(tokens) == (count == MOST_CALLS)
        assert matcher.is_stopped()
