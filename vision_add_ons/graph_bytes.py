"""What a computation takes of memory, told by its graph, without computing it.

MLX hands operations out ahead of what is done, and a buffer is let go when what reads it is done.
So at worst all buffers of what is evaluated at once are there together. That sum is counted here.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

# Their outputs are other views of the buffers that they are given.
VIEWS = frozenset(
    {"Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split"}
    | {"Squeeze", "StopGradient", "Transpose", "Unflatten", "View"}
)
# What may write into a buffer that it is given, if it is the last that reads it.
IN_PLACE = frozenset(
    {"Abs", "Add", "Cos", "Divide", "Erf", "Exp", "Maximum", "Minimum", "Multiply", "Negative"}
    | {"Power", "Select", "Sigmoid", "Sin", "Softmax", "Sqrt", "Square", "Subtract", "Tanh"}
)


def graph_bytes(
    function: Callable[..., mx.array | tuple[mx.array, ...]],
    *inputs: mx.array,
    modules: Sequence[nn.Module],
) -> int:
    """The bytes of all buffers that `function` of these inputs allocates, its outputs included.

    Nothing is computed or read: `mx.zeros` will do for the inputs, and the like stands in for the
    weights of `modules` meanwhile, which are all that the function uses. Not to be asked while
    somebody else uses them.
    """
    weights = [module.parameters() for module in modules]
    values = count(1)
    for module, real in zip(modules, weights, strict=True):
        # Each of another value: MLX computes only once what two layers of the same weights make.
        module.update(tree_map(lambda a: mx.full(a.shape, next(values), a.dtype), real))
    try:
        return _graph_bytes(function, inputs)
    finally:
        for module, real in zip(modules, weights, strict=True):
            module.update(real)


def _graph_bytes(function: Callable[..., Any], inputs: tuple[mx.array, ...]) -> int:
    nodes: list[dict[str, Any]] = []

    def note(node: dict[str, Any]) -> None:
        if node["type"] == "primitive":
            nodes.append(node)

    mx.export_function(note, function, *inputs)
    readers = Counter(name for node in nodes for name, *_ in node["inputs"])
    total = 0
    ours: dict[str, int] = {}  # arrays whose whole buffer this graph allocated, and its bytes
    for node in nodes:
        sources = [name for name, *_ in node["inputs"]]
        if node["name"] == "Convolution":
            total += _aside(node)
        for name, shape, dtype in node["outputs"]:
            size = math.prod(shape) * dtype.size
            if node["name"] == "Full":  # the stand-ins
                continue
            if node["name"] in VIEWS:
                if ours.get(sources[0]) == size and readers[sources[0]] == 1:
                    ours[name] = size
                continue
            free = [s for s in sources if ours.get(s) == size and readers[s] == 1]
            if not (node["name"] in IN_PLACE and free):
                total += size
            ours[name] = size
    return total


def _aside(node: dict[str, Any]) -> int:
    """What a convolution writes beside its output: on a CPU its input, all that goes into each
    value, and for dtypes other than float32 kernel and output too, each in float32. Nothing where
    every channel stays alone."""
    (_, pixels, dtype), (_, kernel, _) = node["inputs"]
    [(_, made, _)] = node["outputs"]
    if kernel[-1] != pixels[-1]:
        return 0
    values = math.prod(pixels) + math.prod(made[:-1]) * math.prod(kernel[1:])
    if dtype != mx.float32:
        values += math.prod(kernel) + math.prod(made)
    return 4 * values
