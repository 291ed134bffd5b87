"""Answers that call tools, of models that were taught what to say, in each of mlx-lm's forms."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image
from support import recited
from support.at_once import held
from support.call_forms import BOTH, CALLS, FORMS, MARKS, ONE, OTHER, TOOLS, form_of, written
from support.moxin_checkpoint import write_seeing

from engine import (
    ChatBusy,
    Engine,
    Finished,
    GenerationOptions,
    OptionError,
    PromptError,
    Request,
    Schema,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    load,
    load_picture,
)

Made = Callable[..., Engine]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """An engine whose model says what it is told to."""
    engines: list[Engine] = []

    def make(scripts: dict[int, str], parallel: int = 1, sees: bool = False, **how: Any) -> Engine:
        folder = recited.save(tmp_path / str(len(engines)), scripts, **how)
        if sees:
            folder = write_seeing(tmp_path / f"{len(engines)} sees", folder, 7)
        engines.append(load(folder, parallel=parallel))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def plain(end: Finished) -> list[tuple[str, Any]]:
    return [(call.name, dict(call.arguments)) for call in end.tool_calls]


@pytest.mark.parametrize("name", FORMS)
def test_every_form(made: Made, name: str, seed: int) -> None:
    two = written(name, BOTH[name]) if name in BOTH else written(name, ONE[name], OTHER[name])
    broken = written(name, ONE[name].replace("weather", "sing"))
    scripts = {1: "Hm.\n" + written(name, ONE[name]), 3: two, 5: f"No: {broken}"}
    engine = made(scripts, parser=name, seed=seed % 1000, parallel=2, sees=True)
    same_as = {"laguna": "glm47"}.get(name, name)
    assert engine.tool_form.startswith(f"told by the chat template, calls as {same_as}")
    chat = engine.chat(tools=TOOLS)
    events = list(chat.send("What is the weather?"))
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.answer) == ("tool_calls", "Hm.")
    assert plain(end) == [CALLS[0]]
    assert tuple(e for e in events if isinstance(e, ToolCall)) == end.tool_calls
    deltas = [e for e in events if isinstance(e, ToolCallDelta)]
    assert "".join(d.arguments for d in deltas) == end.tool_calls[0].written
    assert len([e for e in events if isinstance(e, TextDelta) and e.token]) == len(end.tokens)
    assert "".join(e.text for e in events) == end.answer

    seen = load_picture(Image.new("RGB", (8, 8), "red"))
    answers = [chat.send(results=[["It rains:", seen, "see?"]])]
    streamed, end = list(answers[0])[-1], answers[0].result()
    assert streamed == end
    assert (end.finish_reason, end.answer, plain(end)) == ("tool_calls", "", list(CALLS))
    # The same, of messages that an app keeps itself.
    answers.append(engine.submit(Request(chat.messages[:3], tools=TOOLS)))
    assert plain(answers[1].result()) == list(CALLS)
    for prompt in (answer.prompt for answer in answers):
        ((begin, stop),) = [(span.start, span.end) for span in prompt.spans]
        assert engine.detokenize(prompt.tokens[:begin]).endswith("tool: It rains:")
        assert engine.detokenize(prompt.tokens[stop:]).startswith("see?\nassistant: ")
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
    end = chat.send("And now?").result()
    assert (end.finish_reason, end.tool_calls) == ("stop", ())
    assert (end.answer, end.broken_calls) == (f"No: {broken}", (broken,))


CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
TWO = f"{CALL}\n{CALL}"


@pytest.mark.parametrize("template", [recited.HERMES, recited.PLAIN], ids=["its own", "plain"])
def test_a_follow_up_is_warm(made: Made, template: str, tmp_path: Path) -> None:
    """The answer goes into the prompt with the ids that it was generated as, calls and all."""
    answers = {1: f"I look.\n{TWO}", 4: "Noon.", 6: "Yes.", 3: "Noon.", 5: "Yes."}
    engine = made(answers, template=template)
    chat = engine.chat(tools=TOOLS)
    first = chat.send("When is it?").result()
    assert len(first.tool_calls) == 2
    ids = [call.id for call in first.tool_calls]
    second = chat.send(results={ids[1]: "11", ids[0]: "12"}).result()
    assert second.cached_tokens == first.prompt_tokens + len(first.tokens)
    assert [m.text for m in chat.messages[2:4]] == ["12", "11"]
    assert [m.tool_call_id for m in chat.messages[2:4]] == ids
    chat.save(tmp_path / "saved").result()
    again = engine.chat(restore=tmp_path / "saved", tools=TOOLS)
    assert again.messages == chat.messages
    third = again.send("Sure?").result()
    assert third.answer == "Yes."
    assert third.cached_tokens >= second.prompt_tokens


def test_tools_go_on_until_others_are_given(made: Made) -> None:
    engine = made({1: "A.", 3: CALL, 5: CALL})
    chat = engine.chat(tools=TOOLS)
    chat.send("Hi").result()
    assert chat.send("Hi").result().tool_calls
    end = chat.send("Hi", tools=[]).result()
    assert (end.answer, end.tool_calls, end.finish_reason) == (CALL, (), "stop")


def test_one_call_at_most(made: Made) -> None:
    engine = made({1: TWO})
    end = engine.chat(tools=TOOLS).send("Hi", parallel_tool_calls=False).result()
    assert (len(end.tool_calls), end.finish_reason) == (1, "tool_calls")
    assert len(end.tokens) < len(engine.tokenize(TWO)) / 2
    assert len(engine.chat(tools=TOOLS).send("Hi").result().tool_calls) == 2


def test_results_that_fit_no_call(made: Made) -> None:
    engine = made({1: CALL, 3: "Noon."})
    chat = engine.chat(tools=TOOLS)
    with pytest.raises(PromptError, match="no calls"):
        chat.send(results=["12"])
    (call,) = chat.send("When?").result().tool_calls
    before = chat.messages
    for results in ([], ["1", "2"], {"other": "1"}, {}, {call.id: "1", "x": "2"}, "12", 5):
        with pytest.raises(PromptError):
            chat.send(results=results)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="by themselves"):
        chat.send("And?", results=["12"])
    assert chat.messages == before
    with (
        held(engine, lambda: chat.send(results={call.id: "12"})) as under_way,
        pytest.raises(ChatBusy),
    ):
        chat.send(results=["12"])
    assert under_way.result().answer == "Noon."


def test_tools_need_messages(made: Made) -> None:
    engine = made({1: CALL})
    for prompt in ("Hi", [5, 6]):
        with pytest.raises(OptionError, match="messages"):
            engine.submit(Request(prompt, tools=TOOLS))  # type: ignore[arg-type]


def test_stop_strings_and_limits(made: Made) -> None:
    """What is cut off within a call is no call, and is said as far as it came."""
    engine = made({1: f"A, B. {CALL}"})
    chat = engine.chat(tools=TOOLS)
    end = chat.send("Hi", options=GenerationOptions(stop="B.")).result()
    assert (end.answer, end.finish_reason, end.tool_calls) == ("A, ", "stop_string", ())
    whole = engine.chat(tools=TOOLS).send("Hi").result()
    short = GenerationOptions(max_tokens=len(whole.tokens) - 3)
    end = engine.chat(tools=TOOLS).send("Hi", options=short).result()
    assert (end.finish_reason, end.tool_calls) == ("length", ())
    assert f"A, B. {CALL}".startswith(end.answer)
    assert end.broken_calls[0] in end.answer


NAMED = {
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Ulm", "Bonn"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
            "snow": {"type": "boolean"},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
ANOTHER = {**NAMED, "name": "climate"}


@pytest.mark.parametrize("added", [True, False], ids=["marks are tokens", "marks are texts"])
@pytest.mark.parametrize("name", sorted(MARKS))
def test_enforced_calls(made: Made, name: str, added: bool) -> None:
    """Of a model that has no idea what to say."""
    engine = made({}, parser=name, added=MARKS[name] if added else ())
    for seed, choice in enumerate(("required", "climate")):
        options = GenerationOptions(max_tokens=1500, temperature=1.0, seed=seed)
        request = Request(
            [{"role": "user", "content": "Hi"}],
            options=options,
            tools=[NAMED, ANOTHER],
            tool_choice=choice,
            parallel_tool_calls=choice != "required",  # a tool by name is called once anyway
        )
        end = engine.submit(request).result()
        assert (end.finish_reason, end.answer) == ("tool_calls", ""), end
        (call,) = end.tool_calls
        assert choice in ("required", call.name)
        jsonschema.validate(dict(call.arguments), NAMED["parameters"])


def test_a_form_that_cannot_be_enforced(made: Made) -> None:
    engine = made({1: "Hi."}, parser="pythonic")
    chat = engine.chat(tools=TOOLS)
    for choice in ("required", "clock"):
        with pytest.raises(OptionError, match="pythonic"):
            chat.send("Hi", tool_choice=choice)
    assert chat.send("Hi").result().answer == "Hi."
    assert chat.send("Hi", tool_choice="none").result().finish_reason


def test_a_schema_besides_tools(made: Made) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    engine = made({}, added=MARKS["json_tools"])
    seen = set()
    for seed in range(16):
        options = GenerationOptions(max_tokens=900, temperature=1.0, seed=seed, schema=schema)
        message = [{"role": "user", "content": "Hi"}]
        one = Request(message, options=options, tools=[NAMED], parallel_tool_calls=False)
        end = engine.submit(one).result()
        seen.add(end.finish_reason)
        if end.finish_reason == "stop":
            jsonschema.validate(json.loads(end.answer), schema)
    assert {"stop", "tool_calls"} <= seen
    other = GenerationOptions(schema=Schema.regex("a"))
    with pytest.raises(OptionError, match="JSON schema"):
        engine.chat(tools=[NAMED]).send("Hi", options=other)


def test_no_calls(made: Made) -> None:
    short = GenerationOptions(max_tokens=40)
    for added in ((), MARKS["json_tools"]):
        engine = made({1: f"A {CALL} B"}, added=added)
        end = engine.chat(tools=TOOLS, options=short).send("Hi", tool_choice="none").result()
        assert "<tool_call>" not in end.answer
        assert end.answer.startswith("A")
        assert not end.tool_calls


def test_a_strict_tool_names_what_cannot_be_held_to(made: Made) -> None:
    engine = made({1: "Hi."}, added=MARKS["json_tools"])
    odd = {"properties": {"a": {"type": "string", "not": {"const": "x"}}}}
    strict, lenient = (Tool("odd", "", odd, strict) for strict in (True, False))
    with pytest.raises(OptionError, match="not"):
        engine.chat(tools=[strict]).send("Hi", tool_choice="odd")
    engine.chat(tools=[lenient]).send("Hi", tool_choice="odd").cancel()


def test_a_picture_in_a_result(seeing_folder: Path) -> None:
    with load(seeing_folder) as engine:
        assert engine.tool_form.startswith("told in plain texts")
        call = {"id": "a", "function": {"name": "look", "arguments": {}}}
        picture = Image.new("RGB", (8, 8), "red")
        parts = [{"type": "text", "text": "Seen:"}, {"type": "image", "image": picture}]
        messages = [
            {"role": "user", "content": "Look!"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": parts},
        ]
        options = GenerationOptions(max_tokens=2)
        request = Request(messages, options=options, tools=[{"name": "look"}])
        assert engine.submit(request).result().images_encoded == 1


def test_forms_are_all_there() -> None:
    """A parser that mlx-lm has is one of those that are tested here."""
    from mlx_lm import tool_parsers

    folder = Path(tool_parsers.__path__[0])
    assert {path.stem for path in folder.glob("[a-z]*.py")} == set(FORMS)
    assert {form_of(name).end == "" for name in FORMS} == {True, False}


def test_a_thought_before_a_call(made: Made) -> None:
    marks = ("<think>", "</think>")
    script = ["<think>", "\nHm", ".\n", "</think>", "\n\n", CALL[:15], CALL[15:]]
    template = recited.HERMES.replace(
        "(m.content or '')", "('<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n\\n')"
    )
    engine = made({1: script, 3: "Noon."}, added=marks, template=template)  # type: ignore[dict-item]
    chat = engine.chat(tools=TOOLS)
    first = chat.send("When?").result()
    assert (first.reasoning, first.answer, first.finish_reason) == ("Hm.", "", "tool_calls")
    assert plain(first) == [CALLS[1]]
    assert chat.messages[1].reasoning == "Hm."
    second = chat.send(results=["12"]).result()
    assert second.answer == "Noon."
    assert second.cached_tokens >= first.prompt_tokens
    # Behind the thought the call is enforced, and by the grammar alone this model's tokens go on.
    end = engine.chat(tools=[NAMED]).send("When?", tool_choice="weather").result()
    assert (end.reasoning, end.answer, end.finish_reason) == ("Hm.", "", "tool_calls")
    jsonschema.validate(dict(end.tool_calls[0].arguments), NAMED["parameters"])
