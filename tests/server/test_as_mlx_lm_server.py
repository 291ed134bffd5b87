"""What mlx-lm's own tests ask of its server over HTTP, asked of this one.

Those of its prompt cache, of its limits of memory and of its keep-alive callback test functions of
its own; here `test_memory_prompt_cache.py`, `test_memory_room.py` and `test_queue.py` do. Its draft
models are loaded with the server; here, too, a request's fields about them change no answer.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support import recited
from support.serving import Running, running

from engine import load

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
QUESTION = {"role": "user", "content": "Hello!"}
SAMPLED = {"max_tokens": 10, "temperature": 0.7, "top_p": 0.85, "repetition_penalty": 1.2}
CALL = {
    "type": "function",
    "id": "123",
    "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'},
}


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Its chat template knows calls."""
    folder = tmp_path_factory.mktemp("recited") / "model"
    with load(recited.save(folder, {3: "It is 5."})) as engine, running(engine) as server:
        yield server


def chat(server: Running, *messages: Any, **more: Any) -> Any:
    body = {"model": "chat_model", "messages": list(messages), **more}
    reply = server.ask("POST", "/v1/chat/completions", body)
    assert reply.status == 200, reply.body
    return reply


def test_a_completion_is_the_same_again(tiny_server: Running) -> None:
    body = {
        "model": "default_model",
        "prompt": "Once upon a time",
        "max_tokens": 10,
        "temperature": 0.5,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "repetition_context_size": 20,
        "seed": 999,
        "stop": "stop sequence",
    }

    def ask(**more: Any) -> str:
        reply = tiny_server.ask("POST", "/v1/completions", {**body, **more})
        assert reply.status == 200
        assert reply.json["id"]
        return str(reply.json["choices"][0]["text"])

    first = ask()
    assert first
    assert ask() == first
    assert ask(seed=5) != first
    # So much does the penalty look back on, for a model that would say one thing only.
    liked = {"temperature": 0, "logit_bias": {"1000": 9.0}, "repetition_penalty": 100.0}
    assert ask(**liked, repetition_context_size=1) != ask(**liked, repetition_context_size=9)


def test_a_chat(tiny_server: Running) -> None:
    asked = chat(tiny_server, SYSTEM, QUESTION, **SAMPLED, seed=1).json
    assert asked["id"]
    assert asked["choices"][0]["message"]["content"]


def test_a_chat_of_parts(tiny_server: Running) -> None:
    """They are what the texts by themselves are."""
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in (SYSTEM, QUESTION)]
    whole, asked = (
        chat(tiny_server, *messages, **SAMPLED, seed=1).json
        for messages in ((SYSTEM, QUESTION), parts)
    )
    assert asked["choices"] == whole["choices"]
    assert asked["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {"content": []}, {}])
@pytest.mark.parametrize("told", ["5", None])
def test_a_call_has_no_content(knowing: Running, content: Any, told: str | None) -> None:
    call = {"role": "assistant", **content, "tool_calls": [CALL]}
    result = {"role": "tool", "content": told, "tool_call_id": "123"}
    question = {"role": "user", "content": "what is 2+3?"}
    asked = chat(knowing, question, call, result, **SAMPLED).json
    assert asked["choices"][0]["message"]["content"] == "It is 5."


def test_a_call_that_the_template_does_not_know(tiny_server: Running) -> None:
    """mlx-lm's server leaves it out; here nothing is left out without a word."""
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "5", "tool_call_id": "123"}
    body: dict[str, Any] = {"messages": [QUESTION, call, result], "max_tokens": 2}
    reply = tiny_server.ask("POST", "/v1/chat/completions", body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_prompt")
    function = {"name": "add", "parameters": {"type": "object"}}
    body["tools"] = [{"type": "function", "function": function}]
    assert tiny_server.ask("POST", "/v1/chat/completions", body).status == 200


def test_models(tiny_server: Running) -> None:
    listed = tiny_server.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model["object"] == "model"
    assert {"id", "created"} <= model.keys()


def test_fields_of_drafts(tiny_server: Running) -> None:
    more = {"draft_model": "default_model", "num_draft_tokens": 3}
    plain, drafted = (
        chat(tiny_server, SYSTEM, QUESTION, max_tokens=10, temperature=0.0, **fields).json
        for fields in ({}, more)
    )
    assert drafted["choices"] == plain["choices"]
    assert drafted["usage"]["completion_tokens"] > 0


def test_a_stream(tiny_server: Running) -> None:
    asked = {"max_tokens": 10, "temperature": 0.0, "stream": True}
    lines = chat(tiny_server, SYSTEM, QUESTION, **asked).body.decode().split("\n")
    told = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert told.pop() == "[DONE]"
    chunks = [json.loads(line) for line in told]
    assert all(len(chunk["choices"]) == 1 and "delta" in chunk["choices"][0] for chunk in chunks)
    assert sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks) > 3


def test_what_prompts_begin_with_is_in_the_cache(tiny_server: Running) -> None:
    begun = "Tell me a story about the sea, the mountains, a very old lighthouse and"
    asked = [
        chat(tiny_server, SYSTEM, {"role": "user", "content": text}, max_tokens=5, temperature=0.0)
        for text in (begun, f"{begun} dragons.")
    ]
    assert all(one.json["choices"][0]["message"]["content"] for one in asked)
    first, second = (one.json["usage"] for one in asked)
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert first["prompt_tokens"] * 0.7 < cached < second["prompt_tokens"]
