"""Sampling: small temperatures, half precision, and logits that are no numbers."""

import math
from typing import Any

import mlx.core as mx
import pytest

from engine import GenerationOptions, NumericalError
from engine.decoding.sampling import Sampler, logits_processors

LOGITS = [0.5, 3.0, -2.0, 30.0, 7.0, 29.9]


def sampled(logits: Any, dtype: mx.Dtype = mx.float32, **options: Any) -> tuple[int, float, Any]:
    """A token as mlx-lm's loop has it sampled, with what is told of it."""
    wanted = GenerationOptions(**options)
    row = mx.array([logits], dtype=dtype)
    for process in logits_processors(wanted, []):
        row = process(mx.array([1, 3, 3]), row)
    sampler = Sampler(wanted, row.shape[-1])
    token = sampler(row - mx.logsumexp(row, keepdims=True))
    mx.eval(token)
    return (int(token.item()), *sampler.next())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("temperature", [5e-324, 1e-7, 1e-6, 3e-6, 3e-5])
def test_in_the_limit_it_is_greedy(dtype: mx.Dtype, temperature: float) -> None:
    # float16 ends at 65,504: most of these, divided, are infinite.
    greedy = sampled([-40.0, 30.0, 29.0, *LOGITS], dtype)
    for seed in range(20):
        mx.random.seed(seed)
        drawn = sampled([-40.0, 30.0, 29.0, *LOGITS], dtype, temperature=temperature)
        assert drawn[0] in (1, 6)  # two are as likely
        assert drawn[1] == greedy[1]


@pytest.mark.parametrize("top_p", [0.0, 5e-324, 1e-46, 1e-38, 1e-6])
def test_a_top_p_below_the_likeliest_takes_it(top_p: float) -> None:
    for seed in range(20):
        mx.random.seed(seed)
        assert sampled(LOGITS, temperature=100, top_p=top_p)[0] == 3


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("penalty", [-100.0, 100.0])
def test_penalties_stay_in_range(dtype: mx.Dtype, penalty: float) -> None:
    extreme = [60_000.0, *LOGITS, -60_000.0]
    biases = dict.fromkeys(range(len(extreme)), penalty)
    _, logprob, told = sampled(
        extreme,
        dtype,
        repetition_penalty=0.01,
        presence_penalty=penalty,
        frequency_penalty=penalty,
        logit_bias=biases,
        top_logprobs=8,
    )
    assert math.isfinite(logprob)
    assert len(told) == 8
    assert all(math.isfinite(value) for _, value in told)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("at", range(len(LOGITS)))
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2}])
def test_one_wrong_logit_is_seen(wrong: float, at: int, options: dict[str, Any]) -> None:
    logits = [wrong if i == at else logit for i, logit in enumerate(LOGITS)]
    with pytest.raises(NumericalError, match="NaN or infinity"):
        sampled(logits, **options)


def test_all_ruled_out_is_no_answer() -> None:
    with pytest.raises(NumericalError):
        sampled([-math.inf] * 4)


def test_tokens_that_the_model_rules_out_are_not_told() -> None:
    token, logprob, told = sampled([-math.inf, *LOGITS], temperature=2.0, top_logprobs=7)
    assert token
    assert math.isfinite(logprob)
    assert sorted(id for id, _ in told) == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in told] == sorted((v for _, v in told), reverse=True)
