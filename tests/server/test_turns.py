"""Clients take turns: one with many requests does not hold another up."""

import random

from support.at_once import held

from engine import Engine, GenerationOptions, Request


def order(engine: Engine, clients: str, tasks: dict[int, str] | None = None) -> str:
    """Who is answered when, if the first is at work while the others come."""
    ended: list[str] = []
    short = GenerationOptions(max_tokens=1)
    generations = []
    with held(engine, lambda: engine.submit(Request("x", client=clients[0]))) as at_work:
        for i, client in enumerate(clients[1:]):
            if tasks and i in tasks:
                engine._worker.call(lambda memory, name=tasks[i]: ended.append(name))  # type: ignore[misc]
            request = Request("x", options=short, client=client)
            generations.append(engine.submit(request, lambda _, c=client: ended.append(c)))  # type: ignore[misc]
        at_work.cancel()
    for generation in generations:
        generation.result(600)
    return "".join(ended)


def test_clients_take_turns(tiny_engine: Engine) -> None:
    assert order(tiny_engine, "aaaaab") == "baaaa"  # the one at work is a's turn
    assert order(tiny_engine, "xaaabbc") == "abcaba"
    assert order(tiny_engine, "abcabc") == "bcabc"


def test_those_of_one_client_stay_in_order(tiny_engine: Engine, seed: int) -> None:
    draw = random.Random(seed)
    clients = "".join(draw.choices("abcd", k=30))
    served = order(tiny_engine, clients)
    rounds = [(served[:i] + clients[0]).count(c) for i, c in enumerate(served)]
    assert rounds == sorted(rounds)
    assert sorted(served) == sorted(clients[1:])


def test_what_came_after_a_task_is_done_after_it(tiny_engine: Engine) -> None:
    assert order(tiny_engine, "xaaabb", {3: "|"}) == "aaa|bb"


def test_who_gives_no_name_is_one_client(tiny_engine: Engine) -> None:
    ended: list[int] = []
    options = GenerationOptions(max_tokens=1)
    generations = [
        tiny_engine.submit(
            Request("x", options=options),
            lambda _, n=n: ended.append(n),  # type: ignore[misc]
        )
        for n in range(6)
    ]
    for generation in generations:
        generation.result(600)
    assert ended == list(range(6))
