"""How far two arrays are apart, and how far they may be."""

import mlx.core as mx
import numpy as np

TOLERANCE = 2e-5
"""The largest relative error that still counts as exact: float32 itself leaves about 1e-6."""


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """||ours - reference|| / ||reference||, computed in float64: always a finite number.

    Raises AssertionError if the shapes differ, if either holds NaN or infinity (which `max` and
    most comparisons pass over), or if the reference is zero everywhere.
    """
    assert ours.shape == reference.shape, (
        f"ours has shape {ours.shape}, the reference {reference.shape}"
    )
    finite("ours", ours)
    finite("the reference", reference)
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    scale = np.linalg.norm(b)
    assert scale, "the reference is zero everywhere, which nothing can be compared with"
    return float(np.linalg.norm(a - b) / scale)


def finite(whose: str, array: np.ndarray) -> None:
    """Raises AssertionError, saying `whose`, if an array of numbers holds NaN or infinity."""
    wrong = int((~np.isfinite(array)).sum())
    assert not wrong, f"{wrong} of {array.size} numbers of {whose} are NaN or infinite"


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits without what softmax does not see: log-probabilities differ from them by just that."""
    return logits - logits.mean(axis=-1, keepdims=True)


def numbers(array: mx.array) -> np.ndarray:
    """An MLX array of any floating-point dtype as float32 in numpy."""
    return np.array(array.astype(mx.float32))
