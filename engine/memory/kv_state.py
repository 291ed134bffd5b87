"""mlx-lm's KV caches at an earlier length: trimmed, branched off, or brought back by a snapshot."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
)

Snapshot = list[Any]
"""The states of the layers that cannot be trimmed, in order, as they were at some length."""

SPARE = 1 / 16
"""How much of what its tokens take a KV cache in memory may have unused beside them.

mlx-lm makes room for 256 tokens at a time. Giving it back costs a copy of what is used, and so does
the next growth: little where the history is short, and from some 4,000 tokens on never done.
"""

_GROW = (KVCache, QuantizedKVCache, RotatingKVCache)
"""The kinds whose arrays have room beyond what they hold, along the last axis but one."""


def kv_length(kv: Sequence[Any]) -> int | None:
    """How many tokens a KV cache holds; None if its layers disagree or do not say."""
    lengths = {c.offset for c in kv if hasattr(c, "offset")}
    return lengths.pop() if len(lengths) == 1 else None


def rotates(kv: Sequence[Any]) -> bool:
    """Whether some layers drop what is old, or keep a state of it (convolutions, linear attention),
    so that no trimming brings an earlier state back."""
    return not all(_always_trims(cache) for cache in kv)


def trims_after(kv: Sequence[Any], count: int) -> bool:
    """Whether all of the caches can still be trimmed when they hold `count` tokens more."""
    return all(
        _always_trims(cache)
        or (cache.is_trimmable() and cache.offset + count < getattr(cache, "max_size", 0))
        for cache in kv
    )


def snapshot(kv: Sequence[Any]) -> Snapshot:
    """What is needed to come back to here, of the layers whose caches cannot be trimmed.

    Nothing is left to compute: it may lie for long, and another thread may write it.
    """
    states = [_alias(c.state) for c in kv if not _always_trims(c)]
    mx.eval(states)
    return states


def shortened(kv: Sequence[Any], snapshots: Mapping[int, Snapshot], length: int) -> list[Any]:
    """The caches with their first `length` tokens alone; `kv` is used up."""

    def trimmed(cache: Any) -> Any:
        cache.trim(cache.offset - length)
        return cache

    return _gone_back(kv, snapshots, length, trimmed)


def branch(kv: Sequence[Any], snapshots: Mapping[int, Snapshot], length: int) -> list[Any]:
    """A copy of the first `length` tokens of the caches, which stay as they are."""

    def start(x: Any) -> Any:
        return mx.contiguous(x[..., :length, :]) if isinstance(x, mx.array) else x

    def copied(cache: Any) -> Any:
        copy = type(cache).from_state(tree_map(start, cache.state))
        copy.trim(cache.offset - length)
        return copy

    copies = _gone_back(kv, snapshots, length, copied)
    mx.eval([c.state for c in copies])
    return copies


def fit(kv: Sequence[Any], spare: float = SPARE) -> None:
    """Cut arrays to the tokens that they hold, if more than the share `spare` of that is unused.

    In place, and a layer at a time: no second copy of a whole history is ever there.
    """
    for cache in kv:
        if isinstance(cache, ArraysCache):
            # A state may be the end of an array as long as the prompt's last chunk.
            cache.cache = [a if a is None else mx.contiguous(a) for a in cache.cache]
            mx.eval(cache.cache)
            continue
        if type(cache) not in _GROW or cache.keys is None:
            continue
        first, end, room = _used(cache)
        if room - (end - first) <= spare * (end - first):
            continue

        def held(x: Any, used: slice = slice(first, end)) -> Any:
            return mx.contiguous(x[..., used, :]) if isinstance(x, mx.array) else x

        state = tree_map(held, cache.state)
        # Where the oldest were cut off, the last one is no longer where it was.
        cache.state = (*state[:-1], end - first) if first else state
        mx.eval(cache.state)


def fitted(kv: Sequence[Any], state: Snapshot) -> Snapshot:
    """A snapshot without the room that it does not use: the sliding windows alone."""
    caches = as_caches(kv, state)
    fit(caches, spare=0)
    return [c.state for c in caches]


def frozen(kv: Sequence[Any]) -> list[Any]:
    """Caches that stay as `kv` is now, for another thread to write: nothing is left to compute.

    The arrays are shared, and MLX copies them only if the conversation goes on meanwhile.
    """
    copies = [type(c).from_state(_alias(c.state)) for c in kv]
    mx.eval([c.state for c in copies])
    return copies


def as_caches(kv: Sequence[Any], state: Snapshot) -> list[Any]:
    """A snapshot in the form of the caches that it was taken of."""
    rotating = [cache for cache in kv if not _always_trims(cache)]
    return [type(c).from_state(s) for c, s in zip(rotating, state, strict=True)]


def finite(kv: Sequence[Any]) -> bool:
    """Whether the last layer holds numbers alone: what is NaN or infinite before it comes to it."""
    floats = [a for a in arrays(kv[-1].state) if mx.issubdtype(a.dtype, mx.floating)]
    return all(mx.isfinite(a).all().item() for a in floats)


def nbytes(kv: Sequence[Any], snapshots: Mapping[int, Snapshot]) -> int:
    return sum(c.nbytes for c in kv) + sum(a.nbytes for s in snapshots.values() for a in arrays(s))


def _gone_back(
    kv: Sequence[Any],
    snapshots: Mapping[int, Snapshot],
    length: int,
    trim: Callable[[Any], Any],
) -> list[Any]:
    """Each cache by `trim`, or as the snapshot has it where trimming would not bring it back."""
    all_trim = can_trim_prompt_cache(kv)
    states = iter(() if all_trim else snapshots[length])
    return [
        trim(cache)
        if all_trim or _always_trims(cache)
        else type(cache).from_state(_alias(next(states)))
        for cache in kv
    ]


def _always_trims(cache: Any) -> bool:
    """Whether a cache can be trimmed whatever it holds; those that rotate can only before."""
    return cache.is_trimmable() and not hasattr(cache, "max_size")


def _used(cache: Any) -> tuple[int, int, int]:
    """Where the tokens that a cache needs begin and end in its arrays, and how many these hold."""
    room = arrays(cache.keys)[0].shape[-2]
    window = getattr(cache, "max_size", None)
    if window is None or cache.offset < window:
        return 0, cache.offset, room
    # A chunk longer than the window lies there whole until the next token; in the order of time.
    return (room - window, room, room) if cache.keep == 0 else (0, room, room)


def _alias(state: Any) -> Any:
    """The same state in arrays of its own, whose contents MLX copies only if one is changed."""
    return tree_map(lambda x: x[...] if isinstance(x, mx.array) else x, state)


def arrays(tree: Any) -> list[mx.array]:
    return [a for a in dict(tree_flatten(tree)).values() if isinstance(a, mx.array)]
