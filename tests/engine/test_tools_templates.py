"""Families' own chat templates with tools: the prompt is what `apply_chat_template` makes of the
same messages, and what is written in it as a call is read back as that call."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("torch")

from PIL import Image
from support import scripted
from support.moxin_checkpoint import write_seeing
from support.tool_templates import PUBLISHED
from transformers import AutoTokenizer

from engine import Engine, GenerationOptions, OptionError, Request, load
from engine.tools.tool import read_tools

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Ulm", 'Ulm, a "<b>"']},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time, \u00fcberall.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}
TOOLS = [WEATHER, CLOCK]
FEW = GenerationOptions(max_tokens=1)
NOT_ENFORCED = ("pythonic", "glm47", "gemma4", "function_gemma")
"""Forms that answers cannot be held to."""


def call(id_: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


RAIN = call("a1b2c3d4e", "weather", city='Ulm, a "<b>"', days=3)
NOON = call("f5g6h7i8j", "clock", zone="Z\u00fcrich")
QUESTION = {"role": "user", "content": "Rain?"}
ONE = [
    QUESTION,
    {"role": "assistant", "content": "Let me look.", "tool_calls": [RAIN]},
    {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": '{"rain": true}'},
]
HISTORIES: list[list[dict[str, Any]]] = [
    [QUESTION],
    [{"role": "system", "content": "Be brief."}, QUESTION],
    ONE,
    [*ONE, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And now?"}],
    [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [RAIN, NOON]},
        {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "wet"},
        {"role": "tool", "tool_call_id": "f5g6h7i8j", "content": "12:00"},
    ],
]


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, family: str) -> Path:
    published = PUBLISHED[family]
    place = tmp_path_factory.mktemp(family) / "model"
    added = ("<pad>", *published.added)
    return scripted.save(place, published.template, None, added=added, end=published.added[1])


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with load(folder) as engine:
        yield engine


def prompt(engine: Engine, messages: Any, **more: Any) -> list[int]:
    options = GenerationOptions(max_tokens=1)
    generation = engine.submit(Request(messages, options=options, tools=TOOLS, **more))
    generation.result()
    return list(generation.prompt.tokens)


def named(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With what some templates write with results: the names of their tools."""
    names = {c["id"]: c["function"]["name"] for m in messages for c in m.get("tool_calls", ())}
    return [m | {"name": names[m["tool_call_id"]]} if m["role"] == "tool" else m for m in messages]


@pytest.mark.parametrize("count", range(len(HISTORIES)))
def test_prompts(engine: Engine, folder: Path, family: str, count: int) -> None:
    messages = HISTORIES[count]
    if PUBLISHED[family].form is None:  # nothing reads its calls: all is told in plain texts
        assert engine.tool_form.startswith("told in plain texts (no parser")
        told = engine.detokenize(prompt(engine, messages))
        wanted = ["Tells the weather.", *[m["content"] for m in messages]]
        wanted += [c["function"]["name"] for m in messages for c in m.get("tool_calls", ())]
        assert all(text in told for text in wanted)
        return
    assert f"calls as {PUBLISHED[family].form}" in engine.tool_form
    own = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        named(messages), tools=TOOLS, add_generation_prompt=True, return_dict=False
    )
    assert prompt(engine, messages) == own
    as_texts = json.loads(json.dumps(messages))
    for message in as_texts:  # as OpenAI's clients write them
        for one in message.get("tool_calls", ()):
            one["function"]["arguments"] = json.dumps(one["function"]["arguments"])
        if not message["content"]:
            message["content"] = None
    assert prompt(engine, as_texts) == own


def test_a_picture_in_a_result(folder: Path, tmp_path: Path) -> None:
    """Each template writes it where it stands among the result's texts."""
    *before, result = ONE
    texts = [{"type": "text", "text": "Qseen"}, {"type": "text", "text": "Qend"}]
    shown = {"type": "image", "image": Image.new("RGB", (8, 8), "red")}
    with load(write_seeing(tmp_path / "sees", folder, 7)) as seeing:
        alone, among = (
            seeing.submit(Request([*before, result | {"content": parts}], tools=TOOLS, options=FEW))
            for parts in (texts, [texts[0], shown, texts[1]])
        )
        assert alone.result().images_encoded == 0
        assert [*among][-1] == among.result()  # streamed, as it is whole
        assert among.result().images_encoded == 1
        (span,) = among.prompt.spans
        sides = among.prompt.tokens[: span.start], among.prompt.tokens[span.end :]
        said = [seeing.detokenize(side) for side in sides]
        assert said[0].endswith("Qseen")
        assert said[1].startswith("Qend")
        assert "".join(said) == seeing.detokenize(alone.prompt.tokens)


def test_a_call_is_read_as_it_is_written(engine: Engine, family: str) -> None:
    form = engine._builder().telling.form
    text = engine.detokenize(prompt(engine, ONE))
    body = text.rpartition(form.start)[2].partition(form.end or "</s>")[0]
    (read,), whole = form.parser.read(body, read_tools(TOOLS))
    assert (read.name, read.arguments, whole) == ("weather", RAIN["function"]["arguments"], True)
    assert read.id == (RAIN["id"] if family == "mistral" else None)


def test_calls_that_must_be(engine: Engine, family: str) -> None:
    """Of a model that has no idea, where they can be enforced."""
    bias = {token: 6.0 for text in '"}<' for token in engine.tokenize(text)}
    options = GenerationOptions(max_tokens=900, temperature=1.0, seed=3, logit_bias=bias)
    request = Request(
        [QUESTION], options=options, tools=TOOLS, tool_choice="weather", parallel_tool_calls=False
    )
    if PUBLISHED[family].form in NOT_ENFORCED:
        with pytest.raises(OptionError, match="tool_choice"):
            engine.submit(request)
        return
    end = engine.submit(request).result()
    assert end.finish_reason == "tool_calls", end
    (made,) = end.tool_calls
    assert made.name == "weather"
    jsonschema.validate(dict(made.arguments), WEATHER["function"]["parameters"])


def test_calls_that_it_begins(engine: Engine, family: str) -> None:
    """Of its own accord, having no idea how to go on."""
    form = engine._builder().telling.form
    mark = engine._builder().token_of(form.start)
    if PUBLISHED[family].form in (None, *NOT_ENFORCED) or mark is None:
        return
    bias = {token: 6.0 for text in '"}<' for token in engine.tokenize(text)} | {mark: 100.0}
    options = GenerationOptions(max_tokens=900, temperature=1.0, seed=3, logit_bias=bias)
    request = Request([QUESTION], options=options, tools=[WEATHER], parallel_tool_calls=False)
    end = engine.submit(request).result()
    assert end.finish_reason == "tool_calls", end
    (made,) = end.tool_calls
    jsonschema.validate(dict(made.arguments), WEATHER["function"]["parameters"])
