"""Sizes of pictures as GLM-4V has them. Semantics: transformers' `Glm4vImageProcessorPil`."""

import math
from typing import ClassVar

from vision_add_ons.picture_sizes import Size, between
from vision_add_ons.qwen2_vl.preprocessing import MAX_RATIO, Patches, too_elongated


class Glm4vPatches(Patches):
    """As Qwen2-VL's, but the limits count a still picture's pixels once for each of its frames, and
    a side shorter than a row's is drawn to that length first."""

    usual_limits: ClassVar = (112 * 112, 28 * 28 * 15000)
    limits_beside_size: ClassVar = False

    @property
    def bounds(self) -> tuple[int, int]:
        return math.ceil(self.min_pixels / self.frames), self.max_pixels // self.frames

    def resized(self, size: Size) -> Size:
        shortest = self.side
        if min(size) < shortest:
            scale = max(shortest / side for side in size)
            drawn = int(size[0] * scale), int(size[1] * scale)
        else:
            drawn = size
        if max(drawn) / min(drawn) > MAX_RATIO:
            raise too_elongated(size)
        width, height = (round(side / shortest) * shortest for side in drawn)
        limits = self.min_pixels, self.max_pixels, self.frames
        return between(drawn, (width, height), shortest, *limits)
