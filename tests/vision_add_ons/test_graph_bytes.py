"""What a graph takes of memory, told without computing it."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from support.peaks import most_taken

from vision_add_ons.graph_bytes import graph_bytes

X = mx.zeros((1000, 16))
ROUNDED = 2**15
"""Bytes that MLX takes more, since its buffers are whole pages."""


@pytest.mark.parametrize(
    ("function", "rows_of_16"),
    [
        (lambda x: x + 1, 1),
        (lambda x: (x + 1) * 2, 1),  # in the place of the sum
        (lambda x: (y := x + 1) * mx.exp(y), 2),  # the sum is read twice
        (lambda x: x.reshape(2000, 8)[:, 1:], 0),
        (lambda x: x.reshape(2000, 8) + 1, 1),
        (lambda x: mx.concatenate([x, x + 1], axis=-1), 3),
        (lambda x: x @ mx.zeros((16, 64)), 4),
        (lambda x: x.astype(mx.float16), 0.5),
    ],
)
def test_a_graph(function: object, rows_of_16: float) -> None:
    assert graph_bytes(function, X, modules=[]) == pytest.approx(rows_of_16 * X.nbytes, rel=0.02)


def test_weights_are_not_read(tmp_path) -> None:
    """Weights that are still in their file stay there, and are in the module afterwards."""
    layer = nn.Linear(16, 32)
    mx.save_safetensors(str(tmp_path / "weights.safetensors"), dict(layer.parameters()))
    layer.load_weights(str(tmp_path / "weights.safetensors"))
    before = dict(layer.parameters())
    mx.reset_peak_memory()
    active = mx.get_active_memory()
    taken = graph_bytes(layer, X, modules=[layer])
    assert taken == pytest.approx(2 * X.nbytes, rel=0.02)
    assert mx.get_peak_memory() - active < layer.weight.nbytes
    assert all(before[name] is array for name, array in layer.parameters().items())


def test_weights_are_back_after_an_error() -> None:
    layer = nn.Linear(16, 32)
    weight = layer.weight
    with pytest.raises(ValueError, match=r"matmul|addmm"):
        graph_bytes(layer, X[:, :3], modules=[layer])
    assert layer.weight is weight


def test_layers_of_the_same_shape_count_each() -> None:
    layers = [nn.Linear(16, 16) for _ in range(3)]
    taken = graph_bytes(lambda x: tuple(layer(x) for layer in layers), X, modules=layers)
    assert taken == pytest.approx(3 * X.nbytes, rel=0.02)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize(("side", "groups"), [(1, 1), (3, 1), (5, 16)])
def test_convolutions(side: int, groups: int, dtype: mx.Dtype) -> None:
    """With what MLX writes aside on a CPU, as measured."""
    conv = nn.Conv2d(16, 32, side, stride=2, groups=groups, bias=False)
    conv.set_dtype(dtype)
    x = mx.zeros((1, 40, 40, 16), dtype)
    mx.eval(x, conv.parameters())
    told = graph_bytes(conv, x, modules=[conv])
    least = told / 1.3 if mx.default_device() == mx.Device(mx.cpu) else 0
    assert least <= most_taken(lambda: conv(x), least) <= told + ROUNDED
