"""Whatever an app's callbacks raise is logged, and every end is delivered."""

import asyncio
import logging
import threading
from concurrent.futures import Future

import pytest
from support.at_once import held

from engine import Engine, Event, Finished, Generation, GenerationOptions, Request, TextDelta
from engine.memory.disk_writer import DiskWriter

OPTIONS = GenerationOptions(max_tokens=4)


@pytest.fixture(params=[ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def error(request: pytest.FixtureRequest) -> type[BaseException]:
    return request.param  # type: ignore[no-any-return]


def logged(caplog: pytest.LogCaptureFixture) -> list[type[BaseException]]:
    records = [r for r in caplog.records if r.name == "sightline" and r.levelno == logging.ERROR]
    assert all("callback" in r.getMessage() for r in records)
    return [r.exc_info[0] for r in records if r.exc_info and r.exc_info[0]]


def iterated(generation: Generation) -> list[Event]:
    """All its events, if they end."""
    told: list[Event] = []
    reader = threading.Thread(target=lambda: told.extend(generation), daemon=True)
    reader.start()
    reader.join(600)
    assert not reader.is_alive(), "iterating never ends"
    return told


def test_on_finish_raises(
    letters: Engine, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Finished) -> None:
        raise error("the callback's own fault")

    generation = letters.submit(Request("Hello", options=OPTIONS), on_finish=fail)
    assert iterated(generation)[-1] is generation.result(600)
    assert generation.result().completion_tokens == 4
    assert logged(caplog) == [error]
    assert letters.generate("Hello", options=OPTIONS).result(600).completion_tokens == 4


@pytest.mark.parametrize("when", [TextDelta, Finished])
def test_on_event_raises(
    letters: Engine,
    error: type[BaseException],
    when: type[Event],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []

    def fail(event: Event) -> None:
        told.append(event)
        if isinstance(event, when):
            raise error("the callback's own fault")

    generation = letters.submit(Request("Hello", options=OPTIONS), on_event=fail)
    assert iterated(generation) == []
    assert generation.result(600).completion_tokens == 4
    assert sum(isinstance(event, TextDelta) and event.token is not None for event in told) == 4
    assert [event for event in told if isinstance(event, Finished)] == [generation.result()]
    assert logged(caplog) == [error]  # once, however many tokens there were

    async def awaited() -> Finished:
        assert [event async for event in generation] == []
        return await generation

    assert asyncio.run(awaited()) is generation.result()


def test_what_follows_a_write_raises(error: type[BaseException]) -> None:
    """The thread that writes goes on."""

    def fail(_: object) -> None:
        raise error("the callback's own fault")

    writer = DiskWriter()
    future: Future[int] = Future()
    future.add_done_callback(fail)
    assert writer.submit(lambda: 3, future).result(600) == 3
    assert writer.submit(lambda: 4).result(600) == 4
    writer.close()
    assert writer.waiting == 0


def test_a_cancelled_request_ends_too(letters: Engine) -> None:
    def fail(_: object) -> None:
        raise SystemExit

    with held(letters, lambda: letters.generate("Hello")) as first:
        waiting = letters.submit(Request("Hello"), on_finish=fail, on_event=fail)
        waiting.cancel()  # calls both on this very thread
        assert waiting.result(600).finish_reason == "cancelled"
        assert iterated(waiting) == []
        first.cancel()
    assert first.result(600).finish_reason == "cancelled"
