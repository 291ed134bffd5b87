"""How a model is told of tools and results: by its template, or in plain texts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from support import recited
from support.call_forms import TOOLS

from engine import GenerationOptions, Message, PromptError, Request, load, load_picture
from engine.tools import plain
from engine.tools.telling import Telling
from engine.tools.tool import read_tools

READ = read_tools(TOOLS)
PICTURE = load_picture(Image.new("RGB", (4, 4)))
CALL = {"id": "a1", "name": "clock", "arguments": {"zone": "UTC"}}
OTHER = {"id": "b2", "name": "weather", "arguments": {"city": "Ulm", "days": 1}}
WRITTEN = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'


def text(message: Message) -> str:
    return "".join(p if isinstance(p, str) else "(picture)" for p in message.parts)


def test_plain_texts() -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", "When?"),
        Message("assistant", "Hm.", tool_calls=(CALL, OTHER)),
        Message("tool", "Noon", tool_call_id="a1"),
        Message("tool", ("Seen:", PICTURE), tool_call_id="b2"),
        Message("user", "So?"),
    ]
    told = plain.in_words(messages, READ, system=True)
    assert [m.role for m in told] == ["system", "user", "assistant", "user"]
    assert text(told[0]).startswith("Be brief.\n\n")
    for tool in READ:
        assert tool.name in text(told[0])
    assert text(told[2]).startswith(f"Hm.\n{WRITTEN}\n<tool_call>")
    assert text(told[3]) == (
        "<tool_response>\nNoon\n</tool_response>\n"
        "<tool_response>\nSeen:(picture)\n</tool_response>\nSo?"
    )
    assert not any(message.tool_calls for message in told)


def test_without_a_system_message() -> None:
    asked = [Message("user", (PICTURE, "When?"))]
    (told,) = plain.in_words(asked, READ, system=False)
    assert told.role == "user"
    assert text(told).endswith("(picture)When?")
    assert "clock" in text(told)
    first, second = plain.in_words(asked, READ, system=True)
    assert (first.role, second) == ("system", asked[0])
    # Two questions in a row stay two where there is nothing of tools between them.
    two = [Message("user", "A"), Message("user", "B")]
    assert len(plain.in_words(two, (), system=True)) == 2


def test_an_answer_keeps_its_ids() -> None:
    message = Message("assistant", (), (5, 6), tool_calls=(CALL,))
    (told,) = plain.in_words([message], (), system=True)
    assert (told.parts, told.tokens) == ((WRITTEN,), (5, 6))


def telling(images: dict[str, Any]) -> Telling:
    """Of a template that knows tools, and takes pictures from these roles."""
    made = SimpleNamespace(form=SimpleNamespace(images=images))
    found = Telling(SimpleNamespace(has_tool_calling=True), made)  # type: ignore[arg-type]
    found.__dict__ |= {"own": True, "_knows_calls": True}
    return found


RESULTS = [
    Message("user", "Look!"),
    Message("assistant", (), tool_calls=(CALL, OTHER)),
    Message("tool", ("Seen:", PICTURE), tool_call_id="a1"),
    Message("tool", (PICTURE, PICTURE), tool_call_id="b2"),
]


@pytest.mark.parametrize("images", [{}, {"user": 1, "tool": 1}])
def test_pictures_stay_where_there_is_a_place(images: dict[str, Any]) -> None:
    told, _ = telling(images).messages(RESULTS, READ)
    assert [m.parts for m in told] == [m.parts for m in RESULTS]
    assert [m.name for m in told[2:]] == ["clock", "weather"]


def test_pictures_of_results_in_a_question() -> None:
    told, variables = telling({"user": 1}).messages(RESULTS, READ)
    assert variables == {"tools": [tool.written for tool in READ]}
    assert [m.role for m in told] == ["user", "assistant", "tool", "tool", "user"]
    assert [text(m) for m in told[2:]] == [
        "Seen:",
        "(2 pictures, shown below)",
        "What clock returned:(picture)What weather returned:(picture)(picture)",
    ]
    more = [*RESULTS, Message("user", "And?"), Message("assistant", "Red.")]
    told, _ = telling({"user": 1}).messages(more, READ)
    assert [m.role for m in told][4:] == ["user", "assistant"]
    assert text(told[4]).endswith("(picture)And?")
    told, _ = telling({"user": 1}).messages([*RESULTS, Message("assistant", "Red.")], READ)
    assert [m.role for m in told][4:] == ["user", "assistant"]


Prompt = Callable[..., str]

NO_CALLS = recited.HERMES.replace("{%- for call in m.tool_calls %}", "{%- for call in [] %}")
DROPS_ONE = recited.HERMES.replace("for tool in tools %}", "for tool in tools[:1] %}")
NO_SYSTEM = recited.PLAIN.replace(
    "{% for m in messages %}",
    "{% if told %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}",
)


@pytest.mark.parametrize(
    ("template", "parser", "about"),
    [
        (recited.HERMES, None, "told by the chat template, calls as json_tools"),
        (recited.PLAIN, None, "told in plain texts (the chat template knows none)"),
        (recited.PLAIN, "pythonic", "told in plain texts (the chat template knows none)"),
        (NO_CALLS, None, "told in plain texts (the chat template knows none)"),
        (
            recited.HERMES.replace("tool_call", "tool"),
            None,
            "told in plain texts (no parser is known for the calls that the chat template asks "
            "for)",
        ),
    ],
)
def test_what_a_template_knows(
    tmp_path: Path, template: str, parser: str | None, about: str
) -> None:
    template = template.replace("m.tools", "m.tool_calls")
    with load(recited.save(tmp_path / "m", {}, template, parser)) as engine:
        assert engine.tool_form == about
        request = Request(
            [{"role": "user", "content": "Hi"}],
            options=GenerationOptions(max_tokens=1),
            tools=TOOLS,
        )
        generation = engine.submit(request)
        generation.result()
        prompt = engine.detokenize(generation.prompt.tokens)
        assert all(word in prompt for word in ("weather", "Tells the weather.", "days", "clock"))


def test_a_template_without_a_system_message(tmp_path: Path) -> None:
    with load(recited.save(tmp_path / "m", {1: "Noon."}, NO_SYSTEM)) as engine:
        end = engine.chat(tools=TOOLS).send("When?").result()
        assert end.answer == "Noon."


def test_a_tool_that_a_template_drops(tmp_path: Path) -> None:
    with (
        load(recited.save(tmp_path / "m", {1: "Noon."}, DROPS_ONE)) as engine,
        pytest.raises(PromptError, match="leaves out the tool clock"),
    ):
        engine.chat(tools=TOOLS).send("When?")


def test_calls_in_a_history_without_tools(tmp_path: Path) -> None:
    """The template tells them as it would a processor, or they are refused: none is lost."""
    messages = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12", "tool_call_id": "a1"},
    ]
    with load(recited.save(tmp_path / "own", {3: "Noon."}, recited.HERMES)) as engine:
        generation = engine.generate(messages)
        assert generation.result().answer == "Noon."
        assert WRITTEN in engine.detokenize(generation.prompt.tokens)
    with load(recited.save(tmp_path / "none", {3: "Noon."}, recited.PLAIN)) as engine:
        with pytest.raises(PromptError, match="leaves out what message 2"):
            engine.generate(messages)
        request = Request(messages, tools=TOOLS)
        assert engine.submit(request).result().answer == "Noon."
