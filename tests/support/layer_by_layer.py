"""Each decoder layer by itself, given what float64 computed of the layers before it.

Where float32 does not suffice for a whole decoder, this tells rounding from another meaning: what a
layer makes of the same input is off by rounding alone, or by more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import torch

Arrays = list[np.ndarray]


class _Given:
    """A layer of mlx-lm's that is given another input than its model has for it."""

    def __init__(self, layer: Any, given: np.ndarray) -> None:
        self._layer, self._given = layer, given
        self._done = 0
        self.made: Arrays = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> Any:
        begin, self._done = self._done, self._done + hidden.shape[-2]
        if begin == self._given.shape[-2]:
            return self._layer(hidden, *args, **kwargs)  # the step behind, which nobody waits for
        given = mx.array(self._given[..., begin : self._done, :].astype(np.float32))
        assert given.shape == hidden.shape
        out = self._layer(given, *args, **kwargs)
        self.made.append(np.array(out[0] if isinstance(out, tuple) else out))
        return out


def ours(engine: Any, inputs: Arrays, ask: Callable[[], None]) -> Arrays:
    """What each layer makes of its input, while the engine is asked once, for a single token.

    Inputs and outputs have shape [..., tokens, hidden_size].
    """

    def replace(make: Callable[[list[Any]], list[Any]]) -> list[Any]:
        # Of the module that runs them: what a model calls its `layers` may be a copy.
        (layers,) = [m["layers"] for m in engine._worker.kit.text_model.modules() if "layers" in m]
        before = list(layers)
        layers[:] = make(before)
        return before

    def put(make: Callable[[list[Any]], list[Any]]) -> list[Any]:
        found: list[Any] = engine._worker.call(lambda _: replace(make)).result()
        return found

    kept = put(lambda layers: [_Given(*pair) for pair in zip(layers, inputs, strict=True)])
    try:
        ask()
    finally:
        given = put(lambda _: kept)
    return [np.concatenate(layer.made, axis=-2) for layer in given]


def theirs(
    model: Any, run: Callable[[], Any], inputs: Arrays | None = None
) -> tuple[Arrays, Arrays]:
    """The inputs and outputs of transformers' layers, in the precision that its model has.

    `run` runs it once. With `inputs`, each layer is given its own of those.
    """
    seen: Arrays = []
    made: Arrays = []
    given = None if inputs is None else iter(inputs)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = "hidden_states" in kwargs
        hidden = kwargs["hidden_states"] if named else args[0]
        if given is not None:
            hidden = torch.from_numpy(next(given)).to(hidden)
        seen.append(hidden.detach().double().numpy())
        if named:
            return args, {**kwargs, "hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    def behind(_: Any, __: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        made.append(out.detach().double().numpy())

    with _hooked(model, before, behind), torch.no_grad():
        run()
    return seen, made


@contextmanager
def _hooked(model: Any, before: Any, behind: Any) -> Iterator[None]:
    layers = [m for m in model.modules() if type(m).__name__.endswith("DecoderLayer")]
    assert layers
    hooks: list[Any] = []
    for layer in layers:
        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(layer.register_forward_hook(behind))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
