"""The addresses and names that clients use: with /v1 or without, any model's name, HEAD."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.serving import Running, running

from engine import Engine, GenerationOptions, load
from engine.server.paths import OTHER_PATHS

HELLO = [{"role": "user", "content": "hello"}]
SHORT = {"messages": HELLO, "max_tokens": 2}
ASKED: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
}


def said(answer: Any) -> Any:
    return answer["output"][0]["content"] if "output" in answer else answer["choices"]


@pytest.fixture(scope="module")
def server(letters_engine: Engine) -> Iterator[Running]:
    with running(letters_engine, model="org/letters") as server:
        yield server


@pytest.fixture(scope="module")
def strict(letters_engine: Engine) -> Iterator[Running]:
    with running(
        letters_engine, model="letters", strict_model=True, api_key="correct-horse"
    ) as server:
        yield server


@pytest.mark.parametrize("path", sorted(OTHER_PATHS))
def test_other_spellings_lead_to_the_same(server: Running, path: str) -> None:
    method = "GET" if OTHER_PATHS[path] == "/v1/models" else "POST"
    body = None if method == "GET" else {**ASKED[OTHER_PATHS[path]], "max_tokens": 2}
    first, second = (server.ask(method, p, body) for p in (path, OTHER_PATHS[path]))
    assert first.status == second.status == 200, first.body
    if method == "GET":
        assert first.json == second.json
    else:
        assert said(first.json) == said(second.json)


def test_other_spellings_are_bounded_counted_and_locked_alike(
    server: Running, strict: Running
) -> None:
    before = server.figures()
    assert server.ask("POST", "/chat/completions", b"," * (2**20 + 1)).status == 413
    grown = [k for k, v in server.figures().items() if "413" in k and before.get(k) != v]
    assert grown
    assert all("/v1/chat/completions" in name for name in grown)
    for path in (
        "/chat/completions",
        "/models",
        "/models/letters",
        "/v1/models/",
        "/completions/",
        "/responses",
        "/responses/resp_1",
        "/v1/responses/resp_1",
    ):
        assert strict.ask("GET", path).status == 401, path
        assert strict.ask("HEAD", path).status == 401, path
    for path in ("/responses", "/responses/", "/responses/resp_1", "/v1/responses/resp_1"):
        for method in ("GET", "HEAD", "DELETE", "POST"):
            assert strict.ask(method, path).status == 401, path


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/health", "/metrics", "/", "/nowhere"])
def test_head_tells_what_get_does_and_no_body(server: Running, path: str) -> None:
    head, got = server.ask("HEAD", path), server.ask("GET", path)
    assert head.status == got.status
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.body == b""
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(got.body))


def test_the_model_tells_how_long_and_whether_it_sees(
    server: Running, seeing_server: Running
) -> None:
    (model,) = server.ask("GET", "/v1/models").json["data"]
    assert model["context_length"] == model["max_model_len"] == 2048
    assert model["architecture"] == {"input_modalities": ["text"], "output_modalities": ["text"]}
    assert model["default_parameters"]["temperature"] == 0
    assert server.ask("GET", "/v1/models/org/letters").json == model
    assert server.ask("GET", "/models/org/letters").json == model
    for other in ("letters", "org", "", "org/letters/", "%ff", "x" * 5000):
        reply = server.ask("GET", f"/v1/models/{other}")
        assert reply.status == 404 or not other  # /v1/models/ lists
    (model,) = seeing_server.ask("GET", "/v1/models").json["data"]
    assert model["architecture"]["input_modalities"] == ["text", "image"]


def test_any_name_of_a_model_or_none_is_taken(server: Running) -> None:
    for given in ({"model": "gpt-4o"}, {"model": ""}, {"model": "\ud800"}, {"model": None}, {}):
        reply = server.ask("POST", "/v1/chat/completions", {**SHORT, **given})
        assert reply.status == 200, reply.body
        assert reply.json["model"] == "org/letters"  # the truth


def test_unless_names_are_heeded(strict: Running) -> None:
    key = {"authorization": "Bearer correct-horse"}
    for given, status, code in (
        ({"model": "letters"}, 200, None),
        ({"model": "gpt-4o"}, 404, "model_not_found"),
        ({"model": ""}, 404, "model_not_found"),
        ({"model": None}, 400, "missing_required_parameter"),
        ({}, 400, "missing_required_parameter"),
    ):
        reply = strict.ask("POST", "/v1/chat/completions", {**SHORT, **given}, key)
        assert reply.status == status
        if code:
            assert (reply.error["code"], reply.error["param"]) == (code, "model")
    chat = strict.ask("GET", "/openapi.json", headers=key).json["components"]["schemas"]
    assert chat["ChatRequest"]["properties"]["model"]["enum"] == ["letters"]
    assert "model" in chat["ChatRequest"]["required"]


def test_the_checkpoints_own_defaults_answer(letters_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "drawing"
    shutil.copytree(letters_folder, folder, copy_function=os.link)
    (folder / "generation_config.json").unlink(missing_ok=True)
    asks = {"do_sample": True, "temperature": 1.5, "top_k": 5}
    (folder / "generation_config.json").write_text(json.dumps(asks))
    with load(folder) as engine, running(engine) as server:
        (model,) = server.ask("GET", "/v1/models").json["data"]
        told = model["default_parameters"]
        assert (told["temperature"], told["top_k"]) == (1.5, 5)

        def answer(**given: object) -> str:
            reply = server.chat("hello", max_tokens=20, seed=3, **given)
            return str(reply.json["choices"][0]["message"]["content"])

        for given in ({}, {"temperature": 0}, {"top_k": 0}, {"temperature": 0.5, "top_k": 40}):
            options = {"temperature": 1.5, "top_k": 5, **given}
            expected = engine.generate(
                HELLO,
                options=GenerationOptions(max_tokens=20, seed=3, **options),  # type: ignore[arg-type]
            ).result()
            assert answer(**given) == expected.answer
    # What whoever starts the server sets comes first.
    with (
        load(folder) as engine,
        running(engine, options=GenerationOptions(max_tokens=5)) as server,
    ):
        (model,) = server.ask("GET", "/v1/models").json["data"]
        assert model["default_parameters"]["temperature"] == 0
