"""Rows that are drawn together, each against mlx-lm's sampler alone."""

from typing import Any

import mlx.core as mx
import pytest

from engine import GenerationOptions, NumericalError
from engine.decoding.row_sampler import Row, RowSampler
from engine.decoding.sampling import Sampler

VOCAB = 500
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 0.9, "min_p": 0.05, "top_logprobs": 3},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.5, "top_k": 7, "min_p": 0.01, "top_logprobs": 5},
    {"temperature": 1e-6, "top_logprobs": 20},
]


def steps(rows: int, count: int, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    logits = [(2 * mx.random.normal((rows, VOCAB))).astype(dtype) for _ in range(count)]
    return [x - mx.logsumexp(x, axis=-1, keepdims=True) for x in logits]


def alone(options: GenerationOptions, seed: int, logprobs: list[mx.array]) -> list[Any]:
    """What mlx-lm's sampler draws, with what is told of it."""
    mx.random.seed(seed)
    sampler = Sampler(options, VOCAB)
    tokens = [int(sampler(x).item()) for x in logprobs]
    return [(token, sampler.next()) for token in tokens]


def values(told: Any) -> Any:
    """Of tokens that are as likely, any may be told of."""
    token, (logprob, likeliest) = told
    return token, logprob, [value for _, value in likeliest]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_each_is_drawn_as_if_it_were_alone(seed: int, dtype: mx.Dtype) -> None:
    mx.random.seed(seed)
    asked = [GenerationOptions(**way) for way in WAYS]
    logprobs = steps(len(asked), 30, dtype)
    rows = [Row(options, seed + i, VOCAB) for i, options in enumerate(asked)]
    sampler = RowSampler(rows)
    drawn = [sampler(x).tolist() for x in logprobs]
    for i, (options, row) in enumerate(zip(asked, rows, strict=True)):
        ours = [(step[i], row.next()) for step in drawn]  # type: ignore[index]
        theirs = alone(options, seed + i, [x[i : i + 1] for x in logprobs])
        assert [values(told) for told in ours] == [values(told) for told in theirs]


def test_whoever_joins_and_leaves(seed: int) -> None:
    mx.random.seed(seed)
    options = GenerationOptions(temperature=1.0)
    logprobs = steps(1, 12)
    expected = alone(options, seed, logprobs)
    row = Row(options, seed, VOCAB)
    sampler = RowSampler([row])
    ours = []
    for i, x in enumerate(logprobs):
        if i % 3 == 1:
            sampler.extend(RowSampler([Row(GenerationOptions(temperature=2.0), i, VOCAB)]))
        if i == 5:
            others = RowSampler([Row(GenerationOptions(), 9, VOCAB)])
            others.extend(sampler)  # it need not be the first
            sampler = others
        if i == 9:
            sampler.filter([1])
        place = sampler.rows.index(row)
        ours.append(int(sampler(mx.repeat(x, len(sampler.rows), axis=0))[place]))
    assert [(token, row.next()) for token in ours] == expected


def test_numbers_that_are_none(seed: int) -> None:
    """A row of NaN is its own."""
    mx.random.seed(seed)
    rows = [Row(GenerationOptions(), 0, VOCAB), Row(GenerationOptions(), 0, VOCAB)]
    logprobs = mx.concatenate([steps(1, 1)[0], mx.full((1, VOCAB), mx.nan)])
    RowSampler(rows)(logprobs)
    assert rows[0].next()[0] < 0
    with pytest.raises(NumericalError):
        rows[1].next()
