"""Every option at its bounds, just inside and just outside, crossed in pairs, on tiny models.

The answer is finite log-probabilities or a typed error, through the engine and through the server.
"""

import json
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support import tiny
from support.serving import running

from engine import Engine, GenerationOptions, OptionError, RequestError, TextDelta, load
from engine.options import BOUNDS

TOKENS = len(tiny.LETTERS)
SHORT = 2
"""Tokens of an answer; what bounds answers or memory is not tried beyond that."""


def _edges(name: str) -> tuple[list[float], list[float]]:
    """Values within the bounds of an option, and beyond them."""
    low, high = BOUNDS[name]
    if isinstance(low, int):
        return [low, low + 1, high - 1, high], [low - 1, high + 1]
    inside = [low, math.nextafter(low, high), math.nextafter(high, low), high]
    beyond = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]
    return inside, [*beyond, math.nan, math.inf, -math.inf]


def _values(name: str) -> tuple[list[Any], list[Any]]:
    inside, beyond = _edges(name)
    if name == "logit_bias":  # of one token, and of all
        some = [dict.fromkeys(range(n), bias) for bias in inside for n in (1, TOKENS)]
        return some, [{5: bias} for bias in beyond]
    if name in ("temperature", "top_p", "min_p"):
        inside += [1e-38, 1e-6, 3e-5, 0.5]
    if name == "kv_bits":
        inside, beyond = [2, 4, 8], [*beyond, 3, 7]
    if name == "kv_group_size":
        inside, beyond = [32, 64, 128], [*beyond, 33, 127]
    return inside, beyond


SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_context",
    "logit_bias",
)
"""What changes which token comes next: crossed at all values. The others, at their bounds."""

VALUES = {name: _values(name) for name in BOUNDS}
CALM: dict[str, Any] = {"max_tokens": SHORT, "top_logprobs": 3, "seed": 1}


def pairs() -> Iterator[dict[str, Any]]:
    """Every two options, both at every edge; no value that would only make the test long."""
    for one, other in combinations(VALUES, 2):
        firsts, seconds = (_few(name, one in SAMPLING and other in SAMPLING) for name in (one, other))
        for first in firsts:
            for second in seconds:
                # The answer's length is what is tried of max_tokens: a context ends it as well.
                yield {**CALM, "max_context": 40, one: first, other: second}


def _few(name: str, all_of_them: bool) -> list[Any]:
    values = VALUES[name][0]
    if name == "max_context":
        values = [40, 41]  # the model's own length bounds it otherwise, and the test's time
    return values if all_of_them and name not in ("seed", "top_k") else [values[0], values[-1]]


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def swept(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Engine]:
    folder: Path = tiny.save_of_letters(7, tmp_path_factory.mktemp("swept") / "model")

    def convert(tensors: dict[str, Any]) -> None:
        import torch

        for name, tensor in tensors.items():
            tensors[name] = tensor.to(getattr(torch, request.param))

    tiny.edit_weights(folder, convert)
    with load(folder) as engine:
        yield engine


def test_pairs_within_their_bounds(swept: Engine) -> None:
    asked = 0
    for given in pairs():
        options = GenerationOptions(**given, logprobs=True)
        try:
            generation = swept.generate("hello there", options=options)
        except RequestError as error:
            assert "kv_group_size" in str(error), given  # of this model's heads
            continue
        deltas = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
        assert generation.result().finish_reason in ("length", "stop"), given
        for delta in deltas:
            told = [delta.logprob, *(logprob for _, logprob in delta.top_logprobs)]
            assert all(math.isfinite(logprob) and logprob <= 0.01 for logprob in told), given
        asked += 1
    print(asked, "requests")
    assert asked > 1000


def test_pairs_of_which_one_is_beyond() -> None:
    for one, other in combinations(VALUES, 2):
        for name, beside in ((one, other), (other, one)):
            for value in VALUES[name][1]:
                with pytest.raises(OptionError, match=name):
                    GenerationOptions(**{name: value, beside: VALUES[beside][0][0]})


def test_through_the_server(letters_folder: Path) -> None:
    """The same of what its document says: every answer is JSON without a null or a NaN in a
    log-probability, or a 400 that names what is wrong."""
    with load(letters_folder) as engine, running(engine, model="tiny") as server:
        document = server.ask("GET", "/openapi.json").json
        known = document["components"]["schemas"]["CompletionRequest"]["properties"]
        values: dict[str, list[Any]] = {}
        for name in SAMPLING:
            if name == "logit_bias":
                low, high = BOUNDS[name]
                values[name] = [{str(t): b for t in range(TOKENS)} for b in (low, high)]
                values[name].append({"5": high + 1})
                continue
            number = known[name]["anyOf"][0]
            low, high = number["minimum"], number["maximum"]
            assert BOUNDS[name][1] >= high
            assert low >= BOUNDS[name][0] or name == "seed"  # which may have a sign here
            values[name] = [low, high, high + 1]
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 2, "logprobs": 2}
        for one, other in combinations(values, 2):
            for first in values[one]:
                for second in values[other]:
                    given = {**body, one: first, other: second}
                    reply = server.ask("POST", "/v1/completions", given)
                    wrong = [n for n in (one, other) if given[n] == values[n][-1]]
                    if wrong:
                        assert reply.status == 400, given
                        assert reply.error["param"].split(".")[0] in wrong
                        continue
                    assert reply.status == 200, given
                    told = json.loads(reply.body, parse_constant=_no_number)["choices"][0]
                    told = told["logprobs"]
                    numbers = [*told["token_logprobs"]]
                    numbers += [x for top in told["top_logprobs"] for x in top.values()]
                    assert len(numbers) >= len(told["tokens"])
                    assert all(isinstance(n, float) and n <= 0.01 for n in numbers), given


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} in the server's JSON")
