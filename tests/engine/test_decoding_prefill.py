"""Where a prompt is cut into chunks, for any prompt and any ranges that must stay whole."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models import gemma3_text

from engine.decoding.prefill import chunk_ends, prefill_together


@st.composite
def prompts(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]]]:
    """A number of tokens, a step, and ranges in ascending order that may reach beyond it."""
    gaps = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=5))
    ranges = []
    end = draw(st.integers(-20, 0))  # the first may have begun in what is cached
    for gap, length in gaps:
        ranges.append((end + gap, end + gap + length))
        end += gap + length
    after = draw(st.integers(0, 20))
    return max(end + after, 1), draw(st.integers(1, 40)), [r for r in ranges if r[1] > 0]


@given(prompts())
def test_chunks_cover_the_prompt_and_cut_no_range(
    prompt: tuple[int, int, list[tuple[int, int]]],
) -> None:
    total, step, ranges = prompt
    ends = chunk_ends(total, step, ranges)
    starts = [0, *ends[:-1]]
    within_last = any(start < total - 1 < end for start, end in ranges)
    assert (ends[-1] if ends else 0) == (total if within_last else total - 1)
    assert all(a < b for a, b in zip(starts, ends, strict=False))
    for start, end in ranges:
        assert not any(start < cut < min(end, total) for cut in ends)
    for start, end in zip(starts, ends, strict=False):
        whole = any(a <= start and end <= b for a, b in ranges)
        assert end - start <= step or whole


@given(st.integers(1, 300), st.integers(1, 64))
def test_without_ranges_chunks_are_mlx_lm_s(total: int, step: int) -> None:
    expected = [*range(step, total - 1, step), total - 1] if total > 1 else []
    assert chunk_ends(total, step, ()) == expected


@pytest.fixture(scope="module")
def sliding() -> gemma3_text.Model:
    """A decoder with caches that rotate after 8 tokens, and caches that do not."""
    mx.random.seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "vocab_size": 40}
    model = gemma3_text.Model(
        gemma3_text.ModelArgs(
            model_type="gemma3_text",
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=8,
            sliding_window_pattern=2,
            **sizes,
        )
    )
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("lengths", [(14, 9), (5, 4, 3), (3, 2), (2, 1), (2, 2), (25, 13)])
def test_read_together_each_is_what_it_is_alone(
    sliding: gemma3_text.Model, lengths: tuple[int, ...], step: int
) -> None:
    """Wherever their chunks end: one of a single token is none that a rotating cache takes."""
    prompts = [[3 + (7 * i + length) % 30 for i in range(length)] for length in lengths]
    reading = prefill_together(
        sliding, prompts, [sliding.make_cache() for _ in prompts], lambda: step
    )
    told = []
    while True:
        try:
            told.append(next(reading))
        except StopIteration as end:
            merged = end.value
            break
    assert told == sorted(told)
    assert told[-1] == max(lengths) - 1
    assert all(b - a <= max(step, 3) for a, b in zip([0, *told], told, strict=False))
    together = sliding(mx.array([prompt[-1:] for prompt in prompts]), cache=merged)
    for logits, prompt in zip(together, prompts, strict=True):
        alone = sliding(mx.array([prompt]), cache=sliding.make_cache())[0, -1]
        assert mx.allclose(logits[-1], alone, rtol=2e-5, atol=2e-5)
