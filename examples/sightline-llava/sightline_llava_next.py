"""LLaVA 1.6 (NeXT): a picture once whole, and once in tiles of a grid that suits its shape.

Semantics: transformers' `LlavaNextForConditionalGeneration` and `LlavaNextImageProcessorPil`.
"""

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from PIL import Image
from sightline_llava import LlavaAddOn

from vision_add_ons import weights as checkpoint
from vision_add_ons.base import Picture
from vision_add_ons.configs import check_fields, resolve_config
from vision_add_ons.errors import BrokenConfig

NEWLINE = ("image_newline", "model.image_newline")
# The processor's, height before width, where its file does not say.
USUAL_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


class Newline(nn.Module):
    """The row behind each line of a picture's tiles."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image_newline = mx.zeros(width)


class LlavaNextAddOn(LlavaAddOn):
    """A picture squashed to the tower's square, then line by line at up to four times its size."""

    model_types = ("llava_next",)

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Load tower, projector and newline from `folder`. Raises a `CheckpointError`."""
        whole = resolve_config(config)
        self.newline = Newline(whole["text_config"]["hidden_size"])
        super().__init__(folder, config)
        self.canvases = [(width, height) for height, width in whole["image_grid_pinpoints"]]

    def check(self, whole: dict[str, Any], processor: dict[str, Any]) -> None:
        # Pads where several pictures are batched, which is never done here.
        super().check(whole, {**processor, "do_pad": None})
        # The class token's row has no place on the grid; the reference fails on it.
        check_fields(whole, "config", vision_feature_select_strategy=("default",))
        pairs, side = whole["image_grid_pinpoints"], whole["vision_config"]["image_size"]
        cut = {"image_grid_pinpoints": USUAL_PINPOINTS, **processor}
        check_fields(cut, "preprocessor_config", image_grid_pinpoints=(pairs,))
        pixels = [n for pair in pairs for n in pair if len(pair) == 2 and type(n) is int]
        if not pairs or len(pixels) != 2 * len(pairs) or any(n < 1 or n % side for n in pixels):
            raise BrokenConfig(f"image_grid_pinpoints {pairs} must be pairs of multiples of {side}")

    def load(self, weights: dict[str, mx.array]) -> None:
        newline = {n.removeprefix("model."): w for n, w in weights.items() if n in NEWLINE}
        checkpoint.load_module(self.newline, newline, "")
        super().load({name: w for name, w in weights.items() if name not in NEWLINE})

    def picture_limits(self) -> list[str]:
        sizes = ", ".join(f"{width} x {height}" for width, height in self.canvases)
        return [f"once as {self.side} x {self.side} pixels, and once in tiles, within {sizes}"]

    def canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of those of which most is used, the one of which least is wasted."""
        area = math.prod(size)

        def used(canvas: tuple[int, int]) -> tuple[int, int]:
            scale = min(canvas[0] / size[0], canvas[1] / size[1])
            pixels = min(int(size[0] * scale) * int(size[1] * scale), area)
            return pixels, -math.prod(canvas)

        return max(self.canvases, key=used)

    def lines(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The rows of a picture's tiles that are not of their padding: left, top, right, bottom."""
        columns, lines = (edge // self.side * self.patches for edge in self.canvas(size))
        width, height = size
        if width / height > columns / lines:
            kept = int(round(height * (columns / width), 7))
            cut = (lines - kept) // 2
            return 0, cut, columns, lines - cut
        kept = int(round(width * (lines / height), 7))
        cut = (columns - kept) // 2
        return cut, 0, columns - cut, lines

    def row_count(self, picture: Picture) -> int:
        left, top, right, bottom = self.lines(picture.size)
        return self.patches**2 + (bottom - top) * (right - left + 1)

    def squares(self, image: Image.Image) -> mx.array:
        """Pixels [1 + tiles, side, side, 3], line by line."""
        side, canvas = self.side, self.canvas(image.size)
        across, down = (whole / edge for whole, edge in zip(canvas, image.size, strict=True))
        width, height = canvas
        if across < down:
            height = min(math.ceil(image.height * across), height)
        else:
            width = min(math.ceil(image.width * down), width)
        padded = Image.new("RGB", canvas)
        place = (canvas[0] - width) // 2, (canvas[1] - height) // 2
        padded.paste(image.resize((width, height), self.pixels.resample), place)
        tiles = self.pixels(padded, *canvas).reshape(-1, side, canvas[0] // side, side, 3)
        tiles = tiles.swapaxes(1, 2).reshape(-1, side, side, 3)
        return mx.concatenate([self.pixels(image, side, side)[None], tiles])

    def encode_image(self, picture: Picture) -> mx.array:
        whole, *tiles = self.encode(self.squares(picture.pixels()))
        across, side = self.canvas(picture.size)[0] // self.side, self.patches
        grid = mx.stack(tiles).reshape(-1, across, side, side, whole.shape[-1])
        grid = grid.swapaxes(1, 2).flatten(2, 3).flatten(0, 1)
        left, top, right, bottom = self.lines(picture.size)
        grid = grid[top:bottom, left:right]
        newline = mx.broadcast_to(self.newline.image_newline, (len(grid), 1, grid.shape[-1]))
        grid = mx.concatenate([grid, newline.astype(grid.dtype)], axis=1)
        return mx.concatenate([whole, grid.flatten(0, 1)])
