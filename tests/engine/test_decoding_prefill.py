"""Where a prompt is cut into chunks, for any prompt and any ranges that must stay whole."""

from hypothesis import given
from hypothesis import strategies as st

from engine.decoding.prefill import chunk_ends


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
