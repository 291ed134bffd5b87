"""Random weights for a reference that is a torch module. torch itself is the reference's."""

from typing import Any, TypeVar

import numpy as np

from vision_add_ons.testing.vocabulary import WORDS

Module = TypeVar("Module")

FAINT = np.float32(1 / 16)
"""What is left of special tokens in a head that is the embeddings, too: no answer chooses them, and
a prompt that has another of them in a place is another prompt."""


def random_weights(model: Module, seed: int, spread: float = 0.7) -> Module:
    """Fill a torch model so that attention and positions decide, and answers are plain words.

    No answer ends or holds a special token: the head's other rows are zero, or, where embeddings
    and head are one, `FAINT`. `spread` tempers the matrices, else float32 itself is off by more
    than the tolerance on some seeds. Returns the model, in evaluation mode.
    """
    module: Any = model
    rng = np.random.default_rng(seed)
    head = module.get_output_embeddings().weight
    left = FAINT if head is module.get_input_embeddings().weight else np.float32(0)
    for parameter in module.parameters():
        values = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
        if parameter.ndim == 1:
            values = 1 + np.float32(0.2) * values
        else:
            values *= np.float32(1.5 / parameter.shape[-1] ** 0.5)
        if parameter.ndim == 2 and parameter is not head:
            values *= np.float32(spread)
        if parameter is head:
            values[: WORDS.start] *= left
            values[WORDS.stop :] *= left
        set_values(parameter, values)
    module.eval()
    return model


def set_values(parameter: Any, values: np.ndarray) -> None:
    """Put an array's values into a torch parameter."""
    parameter.data.copy_(parameter.data.new_tensor(values))
