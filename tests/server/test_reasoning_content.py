"""Thoughts on the wire: apart from the answer, switched, bounded, counted and sent back."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

pytest.importorskip("torch")

from support import published_qwen_templates as published
from support import scripted
from support.serving import Running, running

from engine import Engine, load


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("thinker") / "model"
    template = published.QWEN35.replace(
        "{%- set asked", "{{- reasoning_effort if reasoning_effort }}{%- set asked", 1
    )
    with load(scripted.save(folder, template, scripted.THINKS), parallel=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(thinker: Engine) -> Iterator[Running]:
    with running(thinker) as server:
        yield server


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


WELL: Any = [{"role": "user", "content": "Well?"}]


def test_a_client_of_openai_s(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="any", messages=WELL)
    message = whole.choices[0].message
    assert message.content == "Yes sir"
    assert message.model_extra == {"reasoning_content": "Hm so"}
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == 2
    chunks = list(client.chat.completions.create(model="any", messages=WELL, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(d.content or "" for d in deltas) == "Yes sir"
    thoughts = [(d.model_extra or {}).get("reasoning_content") for d in deltas]
    assert "".join(filter(None, thoughts)) == "Hm so"


@pytest.mark.parametrize(
    ("asked", "thought"),
    [
        ({"reasoning_effort": "none"}, None),
        ({"reasoning_effort": "high"}, "Hm so"),
        ({"reasoning_effort": None, "enable_thinking": None}, "Hm so"),
        ({"enable_thinking": False}, None),
        ({"enable_thinking": True}, "Hm so"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}, None),
        ({"chat_template_kwargs": {"unknown": [1, {"a": None}]}}, "Hm so"),
        ({"max_thinking_tokens": 1}, "Hm"),
        ({"thinking_budget": 1}, "Hm"),
        ({"n": 2}, "Hm so"),
    ],
)
def test_switches(server: Running, asked: dict[str, Any], thought: str | None) -> None:
    reply = server.chat("Well?", **{"max_tokens": 20, **asked})
    assert reply.status == 200, reply.json
    for choice in reply.json["choices"]:
        assert choice["message"]["content"] == "Yes sir"
        assert choice["message"].get("reasoning_content") == thought
    told = reply.json["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert told == len((thought or "").split()) * len(reply.json["choices"])


def test_an_effort_that_the_template_knows(server: Running) -> None:
    plain, high = (
        server.chat("Well?", **more).json["usage"]["prompt_tokens"]
        for more in ({}, {"reasoning_effort": "high"})
    )
    assert high == plain + len("high")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "enable_thinking"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "x" * 2**20}}, "chat_template_kwargs"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, None),
    ],
)
def test_what_is_refused(server: Running, asked: dict[str, Any], param: str | None) -> None:
    reply = server.chat("Well?", **asked)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert len(reply.error["message"]) < 600


def test_deep_variables_are_bounded(server: Running) -> None:
    deep = "[" * 5_000 + "]" * 5_000
    body = json.dumps({"messages": WELL, "chat_template_kwargs": {"a": "DEEP"}})
    reply = server.ask("POST", "/v1/chat/completions", body.replace('"DEEP"', deep).encode())
    assert reply.status == 400
    assert server.chat("Well?").status == 200


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_that_is_sent_back(server: Running, name: str) -> None:
    """Is read again behind the last question, and not before it; either way the cache is warm."""
    answer = {"role": "assistant", "content": "Yes sir", name: "Hm so"}
    asked = {"role": "user", "content": f"Well, {name}? " * 20}
    first = server.chat(asked["content"], max_tokens=20).json["usage"]
    reply = server.ask("POST", "/v1/chat/completions", {"messages": [asked, answer, WELL[0]]})
    second = reply.json["usage"]
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert cached == first["prompt_tokens"] - len(["<think>", "\n"])


def test_a_model_that_cannot_think(tiny_server: Running) -> None:
    asked: dict[str, Any] = {"max_tokens": 2}
    for more in ({"reasoning_effort": "none"}, {"reasoning_effort": "high"}):
        assert tiny_server.chat("Well?", **asked, **more).status == 200
    assert tiny_server.chat("Well?", **asked, enable_thinking=False).status == 200
    reply = tiny_server.chat("Well?", **asked, enable_thinking=True)
    assert reply.status == 400
    assert "knows no thoughts" in reply.error["message"]
