"""Several answers to one request: n, several prompts, echo; streamed and whole."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from support.serving import Flow, Running, Watched, running
from support.waiting import wait_for

from engine import Engine, GenerationOptions, Request

HELLO = [{"role": "user", "content": "hello"}]
DRAWN: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5, "logit_bias": {"2": -100}}
OPTIONS: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5, "logit_bias": {2: -100.0}}


@pytest.fixture(scope="module")
def server(letters_engine: Engine) -> Iterator[Running]:
    with running(letters_engine) as server:
        yield server


def chunks(reply: Any) -> list[Any]:
    """What a stream says, having checked that it is whole."""
    lines = [x for x in reply.body.decode().split("\n\n") if x.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def streamed(server: Running, path: str, body: Any) -> tuple[dict[int, str], list[Any]]:
    told = chunks(server.ask("POST", path, {**body, "stream": True}))
    texts: dict[int, str] = defaultdict(str)
    for chunk in told:
        for choice in chunk["choices"]:
            delta = choice.get("delta", {}).get("content") or choice.get("text") or ""
            texts[choice["index"]] += delta
    return texts, told


def test_each_answer_has_a_seed_of_its_own(server: Running, letters_engine: Engine) -> None:
    body = {**DRAWN, "messages": HELLO, "n": 3, "seed": 2**63 - 2}
    reply = server.ask("POST", "/v1/chat/completions", body).json
    ends = [
        letters_engine.generate(
            HELLO, options=GenerationOptions(**OPTIONS, seed=2**63 - 2 + i)
        ).result()
        for i in range(3)
    ]
    assert [c["message"]["content"] for c in reply["choices"]] == [end.answer for end in ends]
    assert len({end.answer for end in ends}) == 3
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 24
    assert reply["usage"]["prompt_tokens"] == ends[0].prompt_tokens
    assert reply["usage"]["total_tokens"] == ends[0].prompt_tokens + 24


def test_the_seed_that_is_told_gives_them_all_again(server: Running) -> None:
    body = {**DRAWN, "messages": HELLO, "n": 2}
    first = server.ask("POST", "/v1/chat/completions", body).json
    seed = first["usage"]["sightline"]["seed"]
    again = server.ask("POST", "/v1/chat/completions", {**body, "seed": seed}).json
    assert again["choices"] == first["choices"]


def test_a_stream_tells_whose_text_it_is(server: Running) -> None:
    body = {**DRAWN, "messages": HELLO, "n": 3, "seed": 4}
    whole = server.ask("POST", "/v1/chat/completions", body).json
    usage = {"stream_options": {"include_usage": True}}
    texts, told = streamed(server, "/v1/chat/completions", {**body, **usage})
    assert [texts[i] for i in range(3)] == [c["message"]["content"] for c in whole["choices"]]
    assert len({chunk["id"] for chunk in told}) == 1
    for index in range(3):
        own = [c for chunk in told for c in chunk["choices"] if c["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["finish_reason"] for c in own].count("length") == 1
        assert own[-1]["finish_reason"] == "length"
    assert [chunk["choices"] for chunk in told].count([]) == 1
    last = told[-1]["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last[name] == whole["usage"][name]


@pytest.mark.parametrize("prompts", [["hello", "goodbye", "hello"], [[40, 41], [50]]])
@pytest.mark.parametrize("echo", [False, True])
def test_several_prompts(
    server: Running, letters_engine: Engine, prompts: list[Any], echo: bool
) -> None:
    body = {**DRAWN, "prompt": prompts, "n": 2, "seed": 9, "echo": echo}
    reply = server.ask("POST", "/v1/completions", body).json
    expected, tokens = [], 0
    for index, prompt in enumerate(p for p in prompts for _ in range(2)):
        options = GenerationOptions(**OPTIONS, seed=9 + index)
        end = letters_engine.generate(prompt, options=options).result()
        before = prompt if isinstance(prompt, str) else letters_engine.detokenize(prompt)
        expected.append(before * echo + end.answer)
        tokens += end.prompt_tokens if index % 2 == 0 else 0
    assert [choice["text"] for choice in reply["choices"]] == expected
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(expected)))
    assert reply["usage"]["prompt_tokens"] == tokens
    texts, _ = streamed(server, "/v1/completions", body)
    assert [texts[i] for i in range(len(expected))] == expected


def test_one_that_is_wrong_ends_them_all(server: Running) -> None:
    """Of the prompts before it no answer is made in vain."""
    for stream in (False, True):
        for bad, code in (("x" * 3000, "context_length_exceeded"), ([10**6], "invalid_prompt")):
            good = "hello" if isinstance(bad, str) else [40]
            body = {"prompt": [good, good, bad], "max_tokens": -1, "stream": stream}
            reply = server.ask("POST", "/v1/completions", body)
            assert (reply.status, reply.error["code"]) == (400, code)
    service = server.server.app.state.service
    wait_for(lambda: all(generation.done for generation in list(service._active)))
    assert server.chat("hello").status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_them_all(letters_engine: Engine, stream: bool) -> None:
    flow = Flow()
    watched: Any = Watched(letters_engine, flow.at_event)
    with running(watched) as server:
        flow.hold(1)
        body = {**DRAWN, "max_tokens": 1000, "messages": HELLO, "n": 4, "stream": stream}
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        with server.connect() as connection:
            connection.sendall(head.encode() + data)
            service = server.server.app.state.service
            wait_for(lambda: len(service._active) == 4)
        wait_for(lambda: len(flow.ended) == 4)
        assert {generation.result().finish_reason for generation in flow.ended} == {"cancelled"}
        flow.release()
        assert server.chat("hello").status == 200


def test_one_that_fails_on_its_way_ends_them_all(letters_engine: Engine) -> None:
    class Failing:
        """Its second answer breaks off."""

        count = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(letters_engine, name)

        def submit(self, request: Request, **given: Any) -> Any:
            self.count += 1
            if self.count % 2 == 0:
                given["cancel"] = threading.Event()
                given["cancel"].set()
            return letters_engine.submit(request, **given)

    failing: Any = Failing()
    with running(failing) as server:
        body = {**DRAWN, "max_tokens": 300, "messages": HELLO, "n": 2}
        whole = server.ask("POST", "/v1/chat/completions", body)
        assert whole.status == 503
        reply = server.ask("POST", "/v1/chat/completions", {**body, "stream": True})
        lines = [x for x in reply.body.decode().split("\n\n") if x.startswith("data: ")]
        assert "error" in json.loads(lines[-1].removeprefix("data: "))  # and nothing behind it
        service = server.server.app.state.service
        wait_for(lambda: all(generation.done for generation in list(service._active)))


def test_echo_of_one_prompt(server: Running) -> None:
    body = {"prompt": "hello ", "max_tokens": 4, "echo": True}
    reply = server.ask("POST", "/v1/completions", body).json
    assert reply["choices"][0]["text"].startswith("hello ")
    plain = server.ask("POST", "/v1/completions", {**body, "echo": False}).json
    assert reply["choices"][0]["text"] == "hello " + plain["choices"][0]["text"]
