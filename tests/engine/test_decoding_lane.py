"""The caches of a lane's rows: nothing is there twice, beyond a layer or two."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from engine import GenerationOptions
from engine.decoding.lane import Lane, LaneCache
from engine.decoding.lane_row import LaneRow
from engine.decoding.row_sampler import Row, RowSampler

LAYERS = 16


def filled(lengths: Sequence[int]) -> Lane:
    """A lane of rows whose caches hold so many tokens."""
    lanes = []
    for length in lengths:
        caches = [KVCache() for _ in range(LAYERS)]
        for cache in caches:
            cache.update_and_fetch(*mx.random.normal((2, 1, 2, length, 16)))
        mx.eval([cache.state for cache in caches])
        row = Row(GenerationOptions(), 0, 100)
        layers = [LaneCache(cache, [0]) for cache in caches]
        rows = [LaneRow(length, length, [])]
        lanes.append(Lane(None, rows, mx.array([1]), layers, RowSampler([row])))
    first, *others = lanes
    if others:
        first.extend(others)
    return first


def bytes_of(*lanes: Lane) -> int:
    return sum(cache.nbytes for lane in lanes for cache in lane.caches)


def plain_bytes(rows: dict[int, list[Any]]) -> int:
    return sum(cache.keys.nbytes + cache.values.nbytes for row in rows.values() for cache in row)


def test_nothing_is_there_twice_when_all_leave() -> None:
    nothing = mx.get_active_memory()
    lane = filled([2048, 2000, 2001])
    before = bytes_of(lane)
    mx.reset_peak_memory()
    left = lane.leave({2048, 2000, 2001})
    assert [left[name][0].offset for name in (2048, 2000, 2001)] == [2048, 2000, 2001]
    assert mx.get_peak_memory() - nothing < before * (1 + 2.5 / LAYERS)
    assert mx.get_active_memory() - nothing < plain_bytes(left) * (1 + 0.5 / LAYERS)


def test_nothing_is_there_twice_while_rows_come_and_go() -> None:
    """Beyond a layer or two, that is, which are copied one after the other."""
    nothing = mx.get_active_memory()
    lane, other = filled([2048, 2000]), filled([2001])

    def needed(change: Callable[[], Any]) -> tuple[float, float]:
        """The most that was there meanwhile, and what is there afterwards, in layers beyond the
        lanes' own."""
        before = bytes_of(lane, *([other] if other.caches[0]._cache else []))
        mx.reset_peak_memory()
        kept = change()
        mx.eval([cache.state for cache in lane.caches])
        after = bytes_of(lane, *([kept] if isinstance(kept, Lane) else []))
        after += plain_bytes(kept) if isinstance(kept, dict) else 0
        most = mx.get_peak_memory() - nothing - max(before, after)
        left = mx.get_active_memory() - nothing - after
        return most * LAYERS / before, left * LAYERS / before

    for change in (
        lambda: lane.extend([other]),
        lambda: lane.part({2001}),
        lambda: lane.leave({2048}),
    ):
        most, left = needed(change)
        assert most < 2.5
        assert left < 0.5
