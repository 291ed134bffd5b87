"""Freed memory goes back to the system, where the platform can do that."""

import ctypes
import sys

import mlx.core as mx


def release_memory() -> None:
    """Give back what MLX and the C library keep of freed arrays for the next ones.

    glibc alone can be told so: it keeps most of a model that was freed, in blocks below its
    threshold for pages of their own. musl and macOS give back what is freed, unasked.
    """
    mx.clear_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
