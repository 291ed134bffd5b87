"""mlx-lm's KV caches at an earlier length: trimmed, branched off, or brought back by a snapshot."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import can_trim_prompt_cache

Snapshot = list[Any]
"""The states of the layers that cannot be trimmed, in order, as they were at some length."""


def kv_length(kv: Sequence[Any]) -> int | None:
    """How many tokens a KV cache holds; None if its layers disagree or do not say."""
    lengths = {c.offset for c in kv if hasattr(c, "offset")}
    return lengths.pop() if len(lengths) == 1 else None


def rotates(kv: Sequence[Any]) -> bool:
    """Whether some layers drop what is old, so that no trimming brings an earlier state back."""
    return not all(_always_trims(cache) for cache in kv)


def snapshot(kv: Sequence[Any]) -> Snapshot:
    """What is needed to come back to here, of the layers whose caches cannot be trimmed."""
    return [_alias(c.state) for c in kv if not _always_trims(c)]


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


def frozen(kv: Sequence[Any]) -> list[Any]:
    """Caches that stay as `kv` is now, for another thread to write: nothing is left to compute.

    Arrays whose room is used up are shared, and MLX copies them only if the conversation goes on
    meanwhile; of others, what is used is copied.
    """

    def kept(cache: Any) -> Callable[[Any], Any]:
        step = getattr(cache, "step", 1)
        used = -(-cache.offset // step) * step if _always_trims(cache) else None
        return lambda x: mx.contiguous(x[..., :used, :]) if isinstance(x, mx.array) else x

    copies = [type(c).from_state(tree_map(kept(c), c.state)) for c in kv]
    mx.eval([c.state for c in copies])
    return copies


def as_caches(kv: Sequence[Any], state: Snapshot) -> list[Any]:
    """A snapshot in the form of the caches that it was taken of."""
    rotating = [cache for cache in kv if not _always_trims(cache)]
    return [type(c).from_state(s) for c, s in zip(rotating, state, strict=True)]


def nbytes(kv: Sequence[Any], snapshots: Mapping[int, Snapshot]) -> int:
    return sum(c.nbytes for c in kv) + sum(a.nbytes for s in snapshots.values() for a in _arrays(s))


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


def _alias(state: Any) -> Any:
    """The same state in arrays of its own, whose contents MLX copies only if one is changed."""
    return tree_map(lambda x: x[...] if isinstance(x, mx.array) else x, state)


def _arrays(tree: Any) -> list[mx.array]:
    return [a for a in dict(tree_flatten(tree)).values() if isinstance(a, mx.array)]
