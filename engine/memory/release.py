"""Freed memory goes back to the system, where the platform can do that."""

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence

import mlx.core as mx


def release_memory(left: Sequence[Callable[[], object]]) -> None:
    """Give back what MLX and the C library keep of freed arrays for the next ones.

    `left` are weak references to what nothing should hold any more. Where something does, it is a
    cycle that nobody sees, such as the frames of a library's import, and Python is asked to look
    for cycles now. glibc alone has to be told to give memory back: it keeps most of a model that
    was freed. musl and macOS do so unasked.
    """
    if any(ref() is not None for ref in left):
        gc.collect()
    mx.clear_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
