"""Fields that other servers know: ignored, honoured by another name, or refused."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.seeds import SWEEP
from support.serving import Running, data_uri, encoded, run_async, running

from engine import Engine
from engine.server.fields import IGNORED, NEUTRAL, OTHER_NAMES, changes_nothing
from engine.server.responses.schemas import ResponseRequest
from engine.server.schemas import ChatMessage, ChatRequest, CompletionRequest

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
HELLO = [{"role": "user", "content": "hello"}]
DEEP: list[Any] = []
for _ in range(50):
    DEEP = [DEEP]
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    10**300,
    0.5,
    "",
    "\ud800",
    "x" * 10_000,
    [],
    DEEP,
    {"a": DEEP},
]


@pytest.fixture(scope="module")
def server(letters_engine: Engine) -> Iterator[Running]:
    with running(letters_engine) as server:
        yield server


def chat(server: Running, **given: Any) -> Any:
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 1, "seed": 5, **given}
    return server.ask("POST", "/v1/chat/completions", body)


def text(server: Running, **given: Any) -> str:
    reply = chat(server, **given)
    assert reply.status == 200, reply.body
    return str(reply.json["choices"][0]["message"]["content"])


def refused(server: Running, **given: Any) -> dict[str, Any]:
    reply = chat(server, **given)
    assert reply.status == 400
    return reply.error


@pytest.mark.whole
def test_what_cannot_change_an_answer_is_ignored_whatever_it_says(server: Running) -> None:
    plain = text(server)
    for value in ODD if SWEEP else ODD[::4]:
        assert text(server, **dict.fromkeys(IGNORED, value)) == plain
    body = {"prompt": "hello", "max_tokens": 2, **dict.fromkeys(IGNORED, "x")}
    assert server.ask("POST", "/v1/completions", body).status == 200
    others = {name: "x" for name in IGNORED if name not in ResponseRequest.model_fields}
    assert server.ask("POST", "/v1/responses", {"input": "hello", **others}).status == 200


def test_what_would_change_it_is_taken_where_it_changes_nothing(server: Running) -> None:
    plain = text(server)
    assert text(server, **dict.fromkeys(NEUTRAL)) == plain
    given = {name: values[-1] for name, values in NEUTRAL.items() if values}
    assert text(server, **given) == plain


@pytest.mark.parametrize("name", NEUTRAL)
def test_else_it_is_refused_by_its_name(server: Running, name: str) -> None:
    for value in (7, "yes", {}, DEEP):
        error = refused(server, **{name: value})
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert name in error["message"]
        assert len(error["message"]) < 200
    for neutral in NEUTRAL[name]:
        # To Python, 0 is False and 1 is True.
        wrong = int(neutral) if isinstance(neutral, bool) else bool(neutral)
        assert not changes_nothing(name, wrong)
        assert str(neutral).lower().replace("'", '"') in error["message"]


def test_of_many_unknown_fields_one_is_named(server: Running) -> None:
    many = {f"unknown_{i}": i for i in range(10_000)}
    assert refused(server, **many)["param"] == "unknown_0"
    assert refused(server, **{"metadata\u200b": {}})["param"] == "metadata\u200b"
    assert refused(server, Metadata={})["param"] == "Metadata"


@pytest.mark.parametrize(
    ("other", "ours", "value"),
    [
        ("repeat_penalty", "repetition_penalty", 1.7),
        ("repetition_context_size", "penalty_context", 2),
        ("repeat_last_n", "penalty_context", 2),
        ("num_predict", "max_tokens", 3),
        ("n_predict", "max_tokens", 3),
        ("max_completion_tokens", "max_tokens", 3),
        ("random_seed", "seed", 77),
    ],
)
def test_other_names_mean_the_same(server: Running, other: str, ours: str, value: Any) -> None:
    shared: dict[str, Any] = {"repetition_penalty": 1.7} if "context" in ours else {}
    shared |= {"max_tokens": None} if ours == "max_tokens" else {"max_tokens": 30}
    shared |= {"seed": None} if ours == "seed" else {}
    same = text(server, **{**shared, other: value})
    assert same == text(server, **{**shared, ours: value})
    if ours != "max_tokens":
        assert same != text(server, **{**shared, "seed": 5})
    for wrong in ("x", True, [], 10**40):
        error = refused(server, **{**shared, other: wrong})
        assert error["param"] == other
    error = refused(server, **{**shared, ours: value, other: value})
    assert {ours, other} <= set(error["message"].split())
    assert text(server, **{**shared, ours: value, other: None}) == same


def test_a_cap_of_the_context(server: Running) -> None:
    reply = chat(server, num_ctx=30, max_tokens=-1, logit_bias={"2": -100})
    assert reply.json["usage"]["total_tokens"] == 30
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert chat(server, num_ctx=5).error["code"] == "context_length_exceeded"
    for wrong in (1, 0, -1, "30", 2**31):
        assert refused(server, num_ctx=wrong)["param"] == "num_ctx"


@pytest.mark.parametrize("more", [{}, {"max_tokens": -1}, {"max_completion_tokens": -1.0}])
def test_answers_go_on_to_the_end_of_the_context(server: Running, more: dict[str, Any]) -> None:
    asked = {"max_tokens": None, "num_ctx": 50, "logit_bias": {"2": -100}, **more}
    reply = chat(server, **asked)
    assert reply.json["usage"]["total_tokens"] == 50


def test_other_words_for_all_tokens(server: Running) -> None:
    assert text(server, top_k=-1) == text(server, top_k=0) == text(server)
    assert text(server, top_k=1) != text(server)


def test_stream_options_are_of_no_effect_without_a_stream(server: Running) -> None:
    given = {"include_usage": True, "include_obfuscation": True}
    assert text(server, stream_options=given) == text(server)


def message(server: Running, **given: Any) -> Any:
    return chat(server, messages=[{"role": "user", "content": "hello", **given}])


def test_parts_in_other_words(server: Running, seeing_server: Running) -> None:
    plain = text(server)
    for kind in ("text", "input_text", "output_text"):
        part = {"type": kind, "text": "hello", "cache_control": {"type": "ephemeral"}}
        part |= {"prompt_cache_breakpoint": {"mode": "explicit"}}
        reply = message(server, content=[part], cache_control=DEEP, name="Ann")
        assert reply.json["choices"][0]["message"]["content"] == plain
    url = data_uri(encoded())
    answers = set()
    for part in (
        {"type": "image_url", "image_url": {"url": url, "detail": "original"}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url, "detail": "auto", "file_id": None},
        {"type": "input_image", "image_url": {"url": url}},
    ):
        reply = message(seeing_server, content=[part, {"type": "input_text", "text": "hello"}])
        assert reply.status == 200, reply.body
        answers.add(reply.json["choices"][0]["message"]["content"])
        assert reply.json["usage"]["prompt_tokens"] > 40  # its rows among them
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "input_text"}], "[0].text"),
        ([{"type": "input_text", "text": "x", "x": 1}], "[0].x"),
        ([{"type": "input_image"}], "[0].image_url"),
        ([{"type": "input_image", "image_url": ""}], "[0].image_url"),
        ([{"type": "image_url", "image_url": []}], "[0].image_url"),
        ([{"type": "image_url", "image_url": {"url": "x", "x": 1}}], "[0].image_url.x"),
        ([{"type": "input_image", "image_url": "x", "file_id": "file-1"}], "[0].file_id"),
        ([{"type": "input_file", "file_id": "x"}], "[0]"),
        ([{"type": "input_image", "image_url": "x", "detail": "best"}], "[0].detail"),
    ],
)
def test_parts_that_are_none_are_named(server: Running, content: Any, param: str) -> None:
    reply = message(server, content=content)
    assert reply.status == 400
    assert reply.error["param"] == f"messages[0].content{param}"


def test_a_path_as_a_plain_string_is_no_picture(seeing_server: Running) -> None:
    for source in (
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "\ud800",
        "x" * 10_000,
    ):
        for kind in ("image_url", "input_image"):
            reply = message(seeing_server, content=[{"type": kind, "image_url": source}])
            assert reply.status == 400
            codes = ("invalid_image", "image_source_not_allowed", "invalid_value")
            assert reply.error["code"] in codes


def test_an_answer_may_have_said_nothing(server: Running) -> None:
    for nothing in (None, [], ""):
        turns = [*HELLO, {"role": "assistant", "content": nothing}, *HELLO]
        assert chat(server, messages=turns).status == 200
    for role in ("user", "system", "developer"):
        for nothing in (None, []):
            error = refused(server, messages=[{"role": role, "content": nothing}])
            assert error["param"] == "messages[0].content"
    error = refused(server, messages=[{"role": "assistant"}])
    assert error["param"] == "messages[0].content"


def test_names_reach_templates_that_tell_them(server: Running) -> None:
    for wrong in (5, "x" * 257, ["Ann"]):
        assert message(server, name=wrong).error["param"] == "messages[0].name"
    for odd in ("", "Ann", "\u202e\u0000", "Zoë"):
        assert message(server, name=odd).status == 200
    assert message(server, name="\ud800").error["param"] == "messages[0].name"
    service = server.server.app.state.service
    asked = [ChatMessage(role="user", content="hello", name="Ann")]
    (read,) = run_async(service.read_turns([message.turn for message in asked]))
    assert (read.name, read.text) == ("Ann", "hello")


def test_no_field_is_in_two_columns() -> None:
    own = set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
    assert not own & {*IGNORED, *NEUTRAL}
    assert not set(IGNORED) & set(NEUTRAL)
    assert set(OTHER_NAMES) <= own
    # What is kept of a response is no matter of a chat.
    assert set(ResponseRequest.model_fields) & {*IGNORED, *NEUTRAL} == {"metadata", "store"}


def test_the_docs_show_the_table() -> None:
    _, section = DOCS.read_text(encoding="utf-8").split("## Fields of other servers")
    rows = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")][2:]
    ignored, names, neutral = (re.findall("`(.+?)`", row) for row in rows)
    assert ignored == list(IGNORED)
    assert names == [f"{other} = {ours}" for other, ours in OTHER_NAMES.items()]
    shown = {True: "true", False: "false", "": '""'}
    told = [
        " ".join((n, *(str(shown.get(v, v)) if isinstance(v, bool | str) else str(v) for v in vs)))
        for n, vs in NEUTRAL.items()
    ]
    assert neutral == told
