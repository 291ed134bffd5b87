"""Every parameter is honoured, or refused by its name."""

from typing import Any

import pytest
from support.serving import Running, data_uri, encoded, image_part

HELLO = [{"role": "user", "content": "Hello"}]

REFUSED: dict[str, Any] = {
    "n": 9,
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "response_format": {"type": "grammar"},
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "web_search_options": {},
    "best_of": 2,
    "echo": True,
    "grammar": "root ::= x",
    "typical_p": 0.5,
    "prompt": "Hello",
    "max_token": 5,
    "max_tokens": 0,
    "max_completion_tokens": -2,
    "temperature": 2.1,
    "top_p": 1.01,
    "top_k": -2,
    "min_p": -0.5,
    "seed": 2**63,
    "stop": [""],
    "presence_penalty": 2.5,
    "frequency_penalty": -2.5,
    "repetition_penalty": 0,
    "penalty_context": 0,
    "logit_bias": {"5": 101},
    "logprobs": "yes",
    "top_logprobs": 21,
    "stream": "yes",
    "user": 5,
    "model": 5,
    "messages": [],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tiny_server: Running, name: str) -> None:
    body = {"model": "tiny", "messages": HELLO, name: REFUSED[name]}
    reply = tiny_server.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.error["param"].startswith(name)
    assert name in reply.error["message"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": True}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "x": 1}}},
            "response_format.json_schema.x",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "bishop", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [*HELLO, {"role": "user", "content": "x", "x": 1}]}, "messages[1].x"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].function",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "user", "content": [image_part("x", detail="best")]}]},
            "messages[0].content[0].image_url.detail",
        ),
    ],
)
def test_errors_name_what_is_wrong(tiny_server: Running, wrong: Any, param: str) -> None:
    body = {"model": "tiny", "messages": HELLO, **wrong}
    reply = tiny_server.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.error["param"] == param


def test_what_changes_nothing_is_taken(tiny_server: Running) -> None:
    """The values by which clients say that they do not want what is not supported."""
    neutral = {
        "n": 1,
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "audio": None,
        "store": False,
        "metadata": None,
        "user": "somebody",
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "stop": None,
        "logit_bias": {},
        "presence_penalty": 0,
        "stream": False,
        "stream_options": None,
        "temperature": None,
        "seed": None,
    }
    reply = tiny_server.chat("Hello", **neutral)
    assert reply.status == 200, reply.body
    plain = tiny_server.chat("Hello").json["choices"]
    assert reply.json["choices"] == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"presence_penalty": 2},
        {"frequency_penalty": 2},
        {"repetition_penalty": 5},
        {"temperature": 2, "seed": 3},
        {"logit_bias": {str(token): 100 for token in (5000, 5001)}},
    ],
)
def test_what_is_supported_changes_the_answer(tiny_server: Running, changes: Any) -> None:
    plain = tiny_server.chat("Hello", max_tokens=24).json["choices"][0]["message"]["content"]
    other = tiny_server.chat("Hello", max_tokens=24, **changes).json["choices"][0]
    assert other["message"]["content"] != plain


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 7}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[1, 2], []]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [[[1]]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"echo": True, "logprobs": 0}, "echo"),
        ({"echo": 1}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": HELLO}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_completions_refuse_by_name_too(tiny_server: Running, wrong: Any, param: str) -> None:
    reply = tiny_server.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "x", **wrong})
    assert reply.status == 400
    assert reply.error["param"].startswith(param)


def test_token_ids_beyond_the_vocabulary(tiny_server: Running) -> None:
    reply = tiny_server.ask("POST", "/v1/completions", {"model": "tiny", "prompt": [2**31 - 1]})
    assert (reply.status, reply.error["code"]) == (400, "invalid_prompt")
    reply = tiny_server.ask("POST", "/v1/completions", {"model": "tiny", "prompt": [5, 6]})
    assert reply.json["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "messages": [], "temperature": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "\\ud800": 1}',
        b"\x1f\x8b\x08\x00",
    ],
)
def test_bodies_that_are_no_request(tiny_server: Running, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = tiny_server.ask("POST", "/v1/chat/completions", body, headers)
    assert reply.status == 400
    assert reply.error["code"]
    # Nor is anything a request that a page of another site could send without asking.
    reply = tiny_server.ask("POST", "/v1/chat/completions", body, {"content-type": "text/plain"})
    assert reply.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/docs", 404),
        ("GET", "/page/../errors.py", 404),
        ("GET", "/page/%2e%2e/errors.py", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/x/", 404),
        ("GET", "/v1/models//", 404),
        ("GET", "/v1/v1/models", 404),
        ("GET", "/v1/chat/completions/x", 404),
        ("HEAD", "/chat/completions", 405),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_addresses_with_nothing_there(
    tiny_server: Running, method: str, path: str, status: int
) -> None:
    reply = tiny_server.ask(method, path)
    assert reply.status == status
    if method == "HEAD":
        assert reply.body == b""
        return
    assert reply.error["code"] in ("not_found", "method_not_allowed", "model_not_found")


def test_pictures_need_eyes(tiny_server: Running) -> None:
    error = tiny_server.chat([image_part(data_uri(encoded()))]).error
    assert error["code"] == "invalid_image"
    assert "text only" in error["message"]
