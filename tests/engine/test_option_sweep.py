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
from support.seeds import SWEEP
from support.serving import running

from engine import Engine, GenerationOptions, OptionError, TextDelta, load
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
    if name == "logit_bias":  # of all tokens, and of one
        counts = (TOKENS, TOKENS, 1, TOKENS)
        biases = [dict.fromkeys(range(n), b) for n, b in zip(counts, inside, strict=True)]
        return biases, [{5: bias} for bias in beyond]
    if name in ("temperature", "top_p", "min_p"):
        inside.insert(2, 3e-5 if name == "temperature" else 1e-38)
    if name == "max_context":  # the model's own length bounds it otherwise, and the test's time
        inside = [40, 41]
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
"""What changes which token comes next."""

VALUES = {name: _values(name) for name in BOUNDS}
CALM: dict[str, Any] = {"max_tokens": SHORT, "top_logprobs": 3}


def pairs(dtype: str) -> Iterator[dict[str, Any]]:
    """Every two options, one at a bound, the other just inside; all such pairs of sampling's.

    In the smaller dtype, which overflows first; of the larger one those of sampling alone. What is
    just inside a bound is tried at both of its ends in the larger dtype, and in a sweep; at every
    corner of what does not concern sampling in a sweep alone.
    """
    for turn, (one, other) in enumerate(combinations(VALUES, 2)):
        at, inside = VALUES[one][0], VALUES[other][0]
        near = [[inside[1]], [inside[-2]]]
        if one in SAMPLING and other in SAMPLING:
            near = [inside[1:-1]] * 2
        elif dtype == "float32":
            continue
        found = []
        for first, seconds in zip((at[0], at[-1]), near, strict=True):
            for second in seconds if SWEEP or dtype == "float32" else seconds[:1]:
                found.append((first, second))
        found += [(at[0], inside[-1]), (at[-1], inside[0])]
        if not (SWEEP or (one in SAMPLING and other in SAMPLING)):
            found = found[turn % 2 :: 2]
        for first, second in found:
            yield {**CALM, "max_context": 40, one: first, other: second}


@pytest.fixture(scope="module", params=["float32", "float16"])
def swept(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[tuple[Engine, str]]:
    folder: Path = tiny.save_of_letters(
        7, tmp_path_factory.mktemp("swept") / "model", num_hidden_layers=1
    )

    def convert(tensors: dict[str, Any]) -> None:
        import torch

        for name, tensor in tensors.items():
            tensors[name] = tensor.to(getattr(torch, request.param))

    tiny.edit_weights(folder, convert)
    with load(folder) as engine:
        yield engine, request.param


def test_pairs_within_their_bounds(swept: tuple[Engine, str], seed: int) -> None:
    engine, dtype = swept
    asked = 0
    for given in pairs(dtype):
        options = GenerationOptions(**{"seed": seed, **given}, logprobs=True)
        if options.kv_bits is not None and options.kv_group_size > 16:
            with pytest.raises(OptionError, match="kv_group_size must divide"):
                engine.generate("hello there", options=options)
            continue
        generation = engine.generate("hello there", options=options)
        deltas = [e for e in generation if isinstance(e, TextDelta) and e.token is not None]
        assert generation.result().finish_reason in ("length", "stop"), given
        for delta in deltas:
            told = [delta.logprob, *(logprob for _, logprob in delta.top_logprobs)]
            assert all(math.isfinite(logprob) and logprob <= 0.01 for logprob in told), given
        asked += 1
    print(asked, "requests")
    assert asked > 200


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
            # A seed may have a sign here, and a top_k of -1 is other servers' word for all.
            assert low >= BOUNDS[name][0] or name == "seed" or (name, low) == ("top_k", -1)
            values[name] = [low, high, high + 1]
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 2, "logprobs": 2}
        for one, other in combinations(values, 2):
            for first, second in ((0, 1), (1, 0), (1, 1), (2, 0)):
                given = {**body, one: values[one][first], other: values[other][second]}
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
