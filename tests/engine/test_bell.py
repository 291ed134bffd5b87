"""In asyncio: answers are iterated and awaited by any number of tasks, and no thread waits."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest

from engine import Engine, Event, Finished, Generation, GenerationOptions, TextDelta


class NoExecutor(ThreadPoolExecutor):
    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        raise AssertionError("a thread was asked for")


def bare() -> Generation:
    """One that the test itself tells what happens."""
    return Generation(cast(Any, None), GenerationOptions())


def end(error: BaseException | None = None) -> Finished:
    reason = "error" if error else "stop"
    return Finished(reason, "", (), 1, 0, 0, 0, 0, 0.0, 0.0, None, 0.0, 0, error=error)  # type: ignore[arg-type]


def deltas(count: int) -> list[TextDelta]:
    return [TextDelta(str(i), i) for i in range(count)]


async def events(generation: Generation) -> list[Event]:
    return [event async for event in generation]


async def until_waiting(generation: Generation, tasks: int = 1) -> None:
    """So many tasks of this loop wait for the next event."""
    while "event" not in generation._bells or len(generation._bells["event"]._waiting) < tasks:
        await asyncio.sleep(0)


def test_a_hundred_answers_at_once_take_no_thread(letters: Engine) -> None:
    options = GenerationOptions(max_tokens=3)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(NoExecutor())
        threads = set(threading.enumerate())
        generations = [letters.generate(f"Question {i}", options=options) for i in range(100)]
        iterating = asyncio.gather(*map(events, generations))
        for told, generation in zip(await iterating, generations, strict=True):
            *before, last = told
            assert isinstance(last, Finished)
            assert not any(isinstance(event, Finished) for event in before)
            assert "".join(event.text for event in before) == last.answer
            assert await generation is last
        assert set(threading.enumerate()) <= threads
        more = [letters.generate(f"And {i}", options=options) for i in range(30)]
        assert [e.completion_tokens for e in await asyncio.gather(*more)] == [3] * 30
        assert set(threading.enumerate()) <= threads

    asyncio.run(main())


def test_awaiting_raises_what_ended_it_and_iterating_tells_it() -> None:
    error = ValueError("the answer failed")

    async def main() -> None:
        generation = bare()
        awaited, told = asyncio.ensure_future(generation), asyncio.ensure_future(events(generation))
        await until_waiting(generation)
        threading.Thread(target=generation.finish, args=[end(error)]).start()
        with pytest.raises(ValueError, match="the answer failed"):
            await awaited
        assert await told == [end(error)]
        with pytest.raises(ValueError, match="the answer failed"):
            await generation

    asyncio.run(main())


def test_an_answer_that_was_there_before() -> None:
    generation = bare()
    for event in deltas(3):
        generation.emit(event)
    generation.finish(end())

    async def main() -> None:
        assert await generation == end()
        assert await events(generation) == [*deltas(3), end()]
        assert await events(generation) == []

    asyncio.run(main())
    assert list(generation) == []


def test_loops_of_every_kind_share_the_events_and_all_of_them_end() -> None:
    generation = bare()
    found: list[list[Event]] = []

    def in_asyncio() -> None:
        async def main() -> None:
            found.extend(await asyncio.gather(events(generation), events(generation)))

        asyncio.run(main())

    readers = [threading.Thread(target=in_asyncio) for _ in range(3)]
    readers += [threading.Thread(target=lambda: found.append(list(generation))) for _ in range(2)]
    for reader in readers:
        reader.start()
    for event in deltas(2000):
        generation.emit(event)
    generation.finish(end())
    for reader in readers:
        reader.join(600)
        assert not reader.is_alive()
    assert len(found) == 8
    shared = [e.token for part in found for e in part if isinstance(e, TextDelta)]
    assert sorted(cast(list[int], shared)) == list(range(2000))
    assert sum(isinstance(e, Finished) for part in found for e in part) == 1
    for part in found:
        numbers = [e.token for e in part if isinstance(e, TextDelta)]
        assert numbers == sorted(cast(list[int], numbers))


def test_a_cancelled_task_takes_no_event_along_and_cancels_nothing() -> None:
    async def main() -> None:
        generation = bare()
        gone = [asyncio.ensure_future(anext(generation)) for _ in range(3)]
        gone += [asyncio.ensure_future(generation) for _ in range(3)]
        stays = asyncio.ensure_future(events(generation))
        await until_waiting(generation, 4)
        generation.emit(TextDelta("first", 0))  # all are woken, and cancelled before they run
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert all(task.cancelled() for task in gone)
        assert not generation.cancelled
        generation.finish(end())
        assert await stays == [TextDelta("first", 0), end()]

    asyncio.run(main())


def test_a_loop_that_is_closed_meanwhile_holds_nobody_up() -> None:
    generation = bare()
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(events(generation)), loop.create_task(until_waiting(generation))]
    loop.run_until_complete(tasks[1])
    loop.close()
    for event in deltas(2):
        generation.emit(event)
    generation.finish(end())
    assert asyncio.run(events(generation)) == [*deltas(2), end()]
    # What it left behind would complain that it was never ended.
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]


def test_importing_the_engine_loads_no_asyncio() -> None:
    code = "import sys, engine; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
