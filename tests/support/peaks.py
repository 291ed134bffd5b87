"""What a computation takes of memory, on machines that have other things to do."""

import gc
from collections.abc import Callable
from typing import Any

import mlx.core as mx

TRIES = 30


def most_taken(compute: Callable[[], Any], wanted: float) -> int:
    """The bytes that `compute` takes at most, beside what is there before.

    MLX frees what is done with while it hands out what is next, so a thread that is kept waiting
    meanwhile takes less. What is asked for again, until at least `wanted` bytes were taken, is how
    much it may be.
    """
    most = 0
    for _ in range(TRIES):
        gc.collect()
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(compute())
        most = max(most, mx.get_peak_memory() - before)
        if most >= wanted:
            break
    return most
