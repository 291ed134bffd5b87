"""KV caches cut to their tokens go on as those that were not, to the bit."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

from engine.memory.kv_state import SPARE, fit, fitted, nbytes, snapshot

KINDS: list[Callable[[], Any]] = [
    KVCache,
    lambda: QuantizedKVCache(group_size=32, bits=8),
    lambda: RotatingKVCache(max_size=300),
    lambda: RotatingKVCache(max_size=40),
]


def rows(count: int) -> tuple[mx.array, mx.array]:
    keys, values = (mx.random.normal((1, 2, count, 32)) for _ in "kv")
    return keys, values


def room(cache: Any) -> int:
    return int(tree_flatten(cache.keys)[0][1].shape[-2])


def same(a: Any, b: Any) -> bool:
    pairs = zip(tree_flatten(a), tree_flatten(b), strict=True)
    return all(mx.array_equal(x, y).item() for (_, x), (_, y) in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_cache_goes_on_alike(kind: Callable[[], Any], seed: int) -> None:
    mx.random.seed(seed)
    chance = random.Random(seed)
    for _ in range(12):
        cut, left = kind(), kind()
        for _ in range(chance.randrange(2, 7)):
            for count in (chance.choice((1, 3, 33, 60, 300)), *[1] * chance.randrange(8)):
                new = rows(count)
                assert same(cut.update_and_fetch(*new), left.update_and_fetch(*new))
            if cut.is_trimmable() and chance.random() < 0.3:
                back = chance.randrange(cut.offset)
                assert cut.trim(back) == left.trim(back)
            fit([cut], spare=chance.choice((0, SPARE)))
            assert (cut.offset, cut.is_trimmable()) == (left.offset, left.is_trimmable())
            assert room(cut) <= min(cut.offset, getattr(cut, "max_size", 10**6)) * (1 + SPARE)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_bytes_are_those_of_the_tokens(kind: Callable[[], Any]) -> None:
    cache, full = kind(), kind()
    cache.update_and_fetch(*rows(33))
    full.update_and_fetch(*rows(256))
    assert cache.nbytes == full.nbytes
    fit([cache])
    assert nbytes([cache], {}) == full.nbytes * 33 // 256


def test_a_long_history_is_not_copied_for_little() -> None:
    cache = KVCache()
    cache.update_and_fetch(*rows(4097))
    before = cache.keys
    fit([cache])
    assert cache.keys is before
    fit([cache], spare=0)
    assert room(cache) == 4097


def test_a_snapshot_holds_the_window_alone() -> None:
    kv = [KVCache(), RotatingKVCache(max_size=16)]
    for cache in kv:
        cache.update_and_fetch(*rows(100))
    (state,) = fitted(kv, snapshot(kv))
    assert state[0].shape[-2] == state[1].shape[-2] == 16
    assert same(state[0], kv[1].keys[..., -16:, :])


def test_a_snapshot_can_be_written_by_any_thread() -> None:
    """What is still to be computed has a stream, which belongs to the thread that asked for it."""
    kv = RotatingKVCache(max_size=16)
    kv.update_and_fetch(*(array + 1 for array in rows(9)))
    states = snapshot([kv])
    with ThreadPoolExecutor(1) as writer:
        writer.submit(mx.eval, states).result()
