"""Views of KV caches: masks for any spans, against masks written out cell by cell."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from vision_add_ons.cache_views import BidirectionalView, CacheView, plain_caches

Ranges = list[tuple[int, int]]


def fill(cache, count: int) -> None:
    """Let the cache hold `count` tokens, whose keys are their indices."""
    if count:
        keys = mx.arange(count, dtype=mx.float32).reshape(1, 1, count, 1)
        cache.update_and_fetch(keys, keys)


def written_out(start: int, count: int, keys: list[int], ranges: Ranges, window: int | None):
    """mask[i][j]: may token `start + i` see key `keys[j]`?"""

    def sees(row: int, column: int) -> bool:
        same = any(a <= row < b and a <= column < b for a, b in ranges)
        near = window is None or row - column < window
        return (column <= row or same) and near

    return np.array([[sees(start + i, key) for key in keys] for i in range(count)])


@st.composite
def chunks(draw: st.DrawFn) -> tuple[int, int, Ranges]:
    """Tokens before a chunk, its length, and ranges none of which the chunk cuts."""
    before, count = draw(st.integers(0, 40)), draw(st.integers(2, 40))
    ranges = []
    for low, high in ((0, before), (before, before + count), (before + count, before + count + 20)):
        end = low
        for gap, length in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 15)))):
            if end + gap + length <= high:
                ranges.append((end + gap, end + gap + length))
                end += gap + length
    return before, count, ranges


@given(chunks())
def test_mask_of_a_full_cache(chunk: tuple[int, int, Ranges]) -> None:
    before, count, ranges = chunk
    for cache in (KVCache(), QuantizedKVCache(group_size=32)):
        if isinstance(cache, KVCache):
            fill(cache, before)
        else:
            cache.offset = before
        mask = BidirectionalView(cache, ranges).make_mask(count, return_array=True)
        keys = list(range(before + count))
        assert np.array_equal(np.array(mask), written_out(before, count, keys, ranges, None))


@given(chunks(), st.integers(2, 50))
def test_mask_of_a_rotating_cache(chunk: tuple[int, int, Ranges], window: int) -> None:
    """Against the keys that the cache then really holds, in the order it holds them."""
    before, count, ranges = chunk
    cache = RotatingKVCache(max_size=window)
    fill(cache, before)
    view = BidirectionalView(cache, ranges)
    mask = view.make_mask(count, return_array=True, window_size=window)
    new = mx.arange(before, before + count, dtype=mx.float32).reshape(1, 1, count, 1)
    keys = [int(k) for k in np.array(view.update_and_fetch(new, new)[0]).ravel()]
    assert np.array_equal(np.array(mask), written_out(before, count, keys, ranges, window))


@pytest.mark.parametrize("ranges", [[], [(0, 5)], [(30, 40)], [(12, 13)]])
def test_a_chunk_that_meets_no_range_gets_the_cache_s_own_mask(ranges: Ranges) -> None:
    cache = KVCache()
    fill(cache, 10)
    view = BidirectionalView(cache, ranges)
    theirs = cache.make_mask(8, return_array=False, window_size=None)
    assert view.make_mask(8) == theirs == "causal"
    assert view.make_mask(1) is None


def test_a_view_hands_on_everything_else() -> None:
    cache = KVCache()
    view = BidirectionalView(cache, [(0, 4)])
    keys = mx.zeros((1, 2, 6, 32))
    view.update_and_fetch(keys, keys)
    assert view.offset == cache.offset == 6
    assert view.nbytes == cache.nbytes
    assert view.state[0] is cache.keys
    assert view.trim(2) == 2
    assert cache.offset == 4
    assert not hasattr(view, "bits")
    with pytest.raises(AttributeError):
        _ = view.nothing_of_the_kind


def test_a_quantized_view_is_the_same_view_of_the_quantized_cache() -> None:
    cache = KVCache()
    fill_with = mx.random.normal((1, 2, 6, 32))
    cache.update_and_fetch(fill_with, fill_with)
    view = BidirectionalView(cache, [(6, 9)]).to_quantized(group_size=32, bits=8)
    assert isinstance(view, BidirectionalView)
    assert isinstance(view.cache, QuantizedKVCache)
    assert view.bits == 8
    assert not hasattr(view, "to_quantized")  # mlx-lm's loop would ask for it again
    assert np.array(view.make_mask(4))[0, 8]


def test_plain_caches() -> None:
    caches = [KVCache(), KVCache()]
    assert plain_caches([CacheView(caches[0]), caches[1]]) == caches
