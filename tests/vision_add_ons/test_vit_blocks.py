"""Blocks over the rows of a picture: however they are cut, the rows are the same."""

import gc
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from vision_add_ons.vit_blocks import (
    Block,
    Cutting,
    Heads,
    Tables,
    attend,
    in_pieces,
    queries_at_once,
    rotate,
    run_blocks,
    writes_scores,
)

WIDTH, HEADS = 32, 2


class Layer(nn.Module):
    """A block as small as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def block(self, windowed: bool = False) -> Block:
        def heads(x: mx.array, tables: Tables | None) -> Heads:
            assert tables is not None
            q, k, v = mx.unflatten(self.qkv(x), -1, (3, HEADS, -1)).transpose(1, 2, 0, 3)
            return rotate(q, tables), rotate(k, tables), v

        return Block(heads, lambda x, seen: x + nn.gelu(self.out(seen)), windowed)


def through(cutting: Cutting, windows: list[int], seed: int) -> np.ndarray:
    """200 rows behind a windowed block and two that see all."""
    mx.random.seed(seed)
    layers = [Layer() for _ in range(3)]
    rows = mx.random.normal((200, WIDTH))
    angles = mx.random.normal((200, WIDTH // HEADS))
    lengths = cutting.pieces(windows)
    tables = zip(*(in_pieces(t(angles), lengths) for t in (mx.cos, mx.sin)), strict=True)
    pieces = in_pieces(rows, lengths)
    blocks = [layer.block(windowed=i == 0) for i, layer in enumerate(layers)]
    run_blocks(pieces, blocks, cutting, list(tables), windows)
    return np.array(mx.concatenate(pieces))


@pytest.mark.parametrize(
    "cutting",
    [Cutting(rows=64), Cutting(rows=1, lazy=1), Cutting(scores=2**12), Cutting(50, 2**10, 1)],
)
def test_pieces_change_nothing(cutting: Cutting, seed: int) -> None:
    windows = [16] * 5 + [8, 8, 4] + [16] * 6 + [4]
    whole = through(Cutting(), windows, seed)
    cut = through(cutting, windows, seed)
    assert np.linalg.norm(cut - whole) <= 2e-6 * np.linalg.norm(whole)


def test_windows_see_themselves_alone(seed: int) -> None:
    windows = [16] * 12 + [8]
    mx.random.seed(seed)
    layer, rows = Layer(), mx.random.normal((200, WIDTH))
    tables = mx.ones((200, WIDTH // HEADS)), mx.zeros((200, WIDTH // HEADS))
    together = [rows]
    run_blocks(together, [layer.block(windowed=True)], Cutting(), [tables], windows)
    alone = [rows[32:48]]
    part = (tables[0][32:48], tables[1][32:48])
    run_blocks(alone, [layer.block()], Cutting(), [part])
    assert mx.allclose(together[0][32:48], alone[0], atol=1e-5)
    assert not mx.allclose(together[0][:16], alone[0], atol=1e-2)


def test_pieces_are_cut_between_stretches() -> None:
    assert Cutting(rows=10).pieces([4] * 6) == [8, 8, 8]
    assert Cutting(rows=10).pieces([4, 20, 4, 4]) == [4, 20, 8]
    assert Cutting(rows=10).pieces([1] * 25) == [10, 10, 5]
    assert Cutting(rows=10).pieces([1] * 10) == [10]


def test_scores_are_never_all_there(seed: int) -> None:
    """1,024 queries of 4 heads would have 16 MiB of scores."""
    mx.random.seed(seed)
    parts = [mx.random.normal((4, 1024, 8)) for _ in range(3)]
    mx.eval(parts)
    at_once = 2**20
    if queries_at_once(4, 1024, 1024, 8, mx.float32, Cutting(scores=at_once)) == 1024:
        pytest.skip("attention writes no scores here")
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(attend(*parts, Cutting(scores=at_once)))
    assert mx.get_peak_memory() - before < 2 * at_once


def test_asking_about_scores_computes_nothing() -> None:
    """Of 10^10 scores, on a thread that has computed nothing yet."""
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with ThreadPoolExecutor(1) as another:
        written = another.submit(writes_scores, 10, 10**5, 10**5, 72, mx.float32).result()
    assert mx.get_peak_memory() - before < 10**4
    if mx.default_device() == mx.cpu:
        assert written
