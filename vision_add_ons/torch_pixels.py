"""Pixels as torchvision makes them on a CPU, to the last bit and without it.

For families whose image processor has no Pillow form, whose resampling differs in every hundredth
value or more. Semantics: transformers' `TorchvisionBackend`, torchvision's `resize` of bytes with
`antialias=True`, and PyTorch's `interpolate` beneath it.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from PIL import Image

from vision_add_ons.errors import UnsupportedCheckpoint
from vision_add_ons.pixels import Pixels

ROWS, VALUES = 16, 2**15
"""That are made at once, so that they stay in the processor's cache: rows, more of short ones."""


class TorchPixels(Pixels):
    """As `Pixels`, for processors that run on torchvision."""

    def check(self) -> None:
        """Raise `UnsupportedCheckpoint` for a filter that is not served."""
        if self.resample not in FILTERS:
            raise UnsupportedCheckpoint(
                f"the image processor's resample {int(self.resample)} is not supported (only "
                f"{' or '.join(str(int(kind)) for kind in FILTERS)})"
            )

    def resized(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        # Pillow turns pictures several times faster than NumPy.
        turned = np.asarray(image.transpose(Image.Transpose.TRANSPOSE))
        narrowed = Image.fromarray(self._first_axis(turned, width))
        return self._first_axis(np.asarray(narrowed.transpose(Image.Transpose.TRANSPOSE)), height)

    def normalised(self, pixels: np.ndarray) -> mx.array:
        # Mean and std are multiplied, instead of the pixels being scaled.
        factor = np.float32(1 / self.factor)
        mean, std = (np.array(v, np.float32) * factor for v in (self.mean, self.std))
        return mx.array((pixels.astype(np.float32) - mean) / std)

    def _first_axis(self, pixels: np.ndarray, size: int) -> np.ndarray:
        """uint8 [n, ...] becomes [size, ...]."""
        if len(pixels) == size:
            return pixels
        starts, weights, bits = table(len(pixels), size, self.resample)
        made = np.empty((size, *pixels.shape[1:]), np.uint8)
        at_once = max(ROWS, VALUES // pixels[0].size)
        for at in range(0, size, at_once):
            rows = slice(at, at + at_once)
            sums = np.full(made[rows].shape, 2**bits // 2, np.int32)
            for tap, weight in enumerate(weights[rows].T):
                taken = np.minimum(starts[rows] + tap, len(pixels) - 1)
                sums += pixels[taken] * weight[:, None, None]
            made[rows] = np.clip(sums >> bits, 0, 255)
        return made


def table(
    before: int, after: int, resample: Image.Resampling
) -> tuple[np.ndarray, np.ndarray, int]:
    """By which weights `before` values become `after`: starts [after], weights [after, taps], bits.

    The weights are whole numbers of 16 bits, and to be divided by 2 to the power of `bits`.
    """
    kernel, reach = FILTERS[resample]
    scale = before / after
    stretch = max(scale, 1.0)
    support = reach * stretch
    centers = scale * (np.arange(after) + 0.5)
    starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + support + 0.5).astype(np.int64), before)
    places = starts[:, None] + np.arange((ends - starts).max())
    weights = kernel(np.abs((places - centers[:, None] + 0.5) * (1 / stretch)))
    weights = np.where(places < ends[:, None], weights, 0.0)
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    largest, bits = weights.max(), 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    whole = np.trunc(weights * 2**bits + np.copysign(0.5, weights))
    return starts, whole.astype(np.int32), bits


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


FILTERS: dict[Image.Resampling, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    Image.Resampling.BILINEAR: (_linear, 1),
    Image.Resampling.BICUBIC: (_cubic, 2),
}
"""What weighs a value by its distance, and how far it reaches."""
