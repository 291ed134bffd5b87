"""Estimates of what pictures take, against what they take."""

from functools import partial
from typing import Any

import mlx.core as mx
import pytest

pytest.importorskip("torch")

from support.peaks import most_taken
from support.planted import Planting

from vision_add_ons.base import Picture, VisionAddOn
from vision_add_ons.errors import ImageError
from vision_add_ons.pixtral.tower import Layer, rotary_tables
from vision_add_ons.qwen2_vl import Qwen2VLAddOn
from vision_add_ons.testing import memory_checks
from vision_add_ons.tower_bytes import Costs, most_of
from vision_add_ons.vit_blocks import Cutting, in_pieces, run_blocks

WIDTH, HEADS = 128, 2


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_blocks(dtype: mx.Dtype, seed: int) -> None:
    """Of a picture in pieces, what is held follows from its size: the estimate is near, and never
    below. As many rows as three pieces, and as several more."""
    mx.random.seed(seed)
    layer = Layer(
        {
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "intermediate_size": 256,
            "hidden_act": "silu",
        }
    )
    layer.set_dtype(dtype)
    mx.eval(layer.parameters())
    costs = Costs.of(layer, layer.block(), WIDTH, HEADS, dtype, dtype)
    cutting = Cutting(rows=256, scores=2**19, lazy=64)
    for columns in (25, 40):
        lengths = cutting.pieces([1] * (30 * columns))
        turns = [
            in_pieces(turn.astype(dtype), lengths)
            for turn in rotary_tables(30, columns, WIDTH // HEADS, 1e4)
        ]
        rows = in_pieces(mx.random.normal((30 * columns, WIDTH)).astype(dtype), lengths)
        mx.eval(rows, turns)
        held = sum(array.nbytes for array in [*rows, *turns[0], *turns[1]])
        told = costs.most(30 * columns, cutting, 1) - held
        turned = list(zip(*turns, strict=True))
        run = partial(run_blocks, rows, [layer.block()], cutting, turned)
        least = (told + held) / 1.25 - held
        assert least <= most_taken(run, least) <= told


def test_phases_add_up_where_they_are_evaluated_at_once() -> None:
    assert most_of(100, Cutting(lazy=100), 1, 2, 3) == 3
    assert most_of(99, Cutting(lazy=100), 1, 2, 3) == 6


@pytest.fixture
def add_on(planting: Planting) -> VisionAddOn:
    """Qwen2-VL's, with a small tower."""
    return planting.kit("qwen2_vl").eyes


def test_a_picture_that_would_be_refused(add_on: VisionAddOn) -> None:
    with pytest.raises(ImageError, match="too elongated"):
        add_on.tower_bytes((4, 4000))


def test_an_add_on_that_does_not_tell(add_on: VisionAddOn) -> None:
    class Silent(Qwen2VLAddOn):
        tower_bytes = VisionAddOn.tower_bytes

    silent = object.__new__(Silent)
    assert silent.tower_bytes((10, 10)) is None


def test_long_pictures_grow_with_their_size_alone(add_on: VisionAddOn) -> None:
    """Four times the patches take about four times as much, not sixteen times."""
    costs, _ = add_on.costs  # type: ignore[attr-defined]
    cutting = Cutting(rows=256, scores=2**16)
    assert costs.most(80_000, cutting, 32) < 4.2 * costs.most(20_000, cutting, 32)


# --- what the kit catches ---------------------------------------------------------------------


class TooFewBytes(Qwen2VLAddOn):
    def tower_bytes(self, size: tuple[int, int]) -> int:
        return super().tower_bytes(size) // 8


class PiecesApart(Qwen2VLAddOn):
    """As if the last piece had not seen what the first one holds."""

    def encode_image(self, picture: Picture) -> mx.array:
        rows = super().encode_image(picture)
        return rows if self.cutting.rows > 100 else mx.concatenate([rows[:-1], rows[:1]])


@pytest.mark.parametrize(
    ("faulty", "check", "saying"),
    [
        (TooFewBytes, memory_checks.check_memory, "but tower_bytes says"),
        (PiecesApart, memory_checks.check_pieces, "cut into pieces, rows of .* are off by"),
    ],
)
def test_the_kit_catches(planting: Planting, faulty: Any, check: Any, saying: str) -> None:
    planting.caught(faulty, check, saying)
