"""Requests that ask for what takes too long, or too much: each is answered or refused, in time and
memory that are bounded, while others are answered."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import recited
from support.hostile_requests import ASKING, ROWS, Json, schema, tools
from support.serving import Reply, Running, running
from support.waiting import wait_for

from engine import Engine, load
from engine.decoding import guide
from engine.decoding.guide import Guides

OTHER = {"user-agent": "somebody else"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    scripts = {1: "One.", 2: "Two.", 3: "Three."}
    with load(recited.save(tmp_path_factory.mktemp("recited") / "model", scripts)) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Running]:
    with running(engine) as server:
        yield server


@pytest.mark.parametrize(
    ("route", "body", "saying"),
    [(route, body, saying) for route, _, body, saying in ROWS],
    ids=[f"{route} {name}" for route, name, _, _ in ROWS],
)
def test_each_is_answered_or_refused(
    server: Running, route: str, body: Json, saying: str | None
) -> None:
    def attack() -> Reply:
        data = json.dumps({**ASKING[route], **body}, ensure_ascii=False).encode()
        return server.ask("POST", route, data, {"content-type": "application/json"})

    with ThreadPoolExecutor(1) as thread:
        attacked = thread.submit(attack)
        assert server.chat("Hello", headers=OTHER).status == 200
        reply = attacked.result()
    if saying is None:
        assert reply.status == 200, reply.body[:500]
    else:
        assert reply.status == 400
        told = reply.error
        assert saying in f"{told['code']} {told['message']}"
        assert len(told["message"]) < 600
    assert server.chat("Hello").status == 200


def test_a_schema_that_takes_long_holds_up_no_others(
    engine: Engine, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that is known already wait for it, in the engine."""
    monkeypatch.setattr(guide, "SECONDS", 600.0)
    guides = engine._guides
    assert isinstance(guides, Guides)
    known, slow = schema({"type": "boolean"}), schema({"type": "null"})
    assert server.chat("Hello", **known).status == 200
    begun, gate = threading.Event(), threading.Event()
    compile_ = guides._compile

    def waits(given: Any) -> Any:
        begun.set()
        gate.wait()
        return compile_(given)

    guides._compile = waits  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(server.chat, "Hello", OTHER, **slow) for _ in range(3)]
            begun.wait()
            wait_for(lambda: server.figures()["sightline_requests_in_flight"] == 3)
            for more in ({}, known, tools({})):
                assert server.chat("Hello", **more).status == 200
            assert not any(one.done() for one in waiting)
            assert server.ask("GET", "/health").status == 200
            direct = engine.generate("Hello", options=_options({"type": "boolean"})).result()
            assert direct.error is None
            gate.set()
            assert [one.result().status for one in waiting] == [200] * 3
    finally:
        gate.set()
        guides._compile = compile_  # type: ignore[method-assign]


def _options(given: Json) -> Any:
    return Engine.options_class(schema=given, max_tokens=3)
