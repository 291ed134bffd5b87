"""The way from pictures to embeddings, ours against mlx-vlm's own, on random weights.

Both sides start from the same photograph and the same tokens and end with evaluated
`input_embeddings`: preprocessing, tower, projector, merging. mlx-vlm is given the image processor
that it would load. `tiny` towers show what our own code costs; `real` ones are of published sizes,
with pictures small enough for a CPU. mlx-vlm has Gemma 3n's in published sizes alone.

The two have to be the same, but for what `Family.off` tells of mlx-vlm's. With what decoders need
beside embeddings it is not so: mlx-vlm reckons the positions of Qwen's families, GLM-4V and
MiniCPM-V 4.7 on this way, in less than a tenth of its time with tiny towers; ours do so later.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image
from vision_families import FAMILIES, IMAGE, mlx_vlm_model, with_blocks, write_checkpoint

from engine.images import load_picture
from vision_add_ons.registry import find_add_on

NAMES = tuple(FAMILIES)
PHOTO = (224, 168)
Way = Callable[[], mx.array]


def measure(
    name: str, real: bool, rounds: int, blocks: int | None = None
) -> tuple[list[float], list[float]]:
    """Seconds of each round, ours and mlx-vlm's, taken in turns.

    The tower has `blocks` of its blocks, or all.
    """
    with ways(name, real, blocks) as both:
        check_same(name, *(way() for way in both))  # and warm up
        seconds: tuple[list[float], list[float]] = ([], [])
        for i in range(rounds):
            for side in (0, 1) if i % 2 else (1, 0):
                started = time.perf_counter()
                both[side]()
                seconds[side].append(time.perf_counter() - started)
    return seconds


@contextmanager
def ways(name: str, real: bool, blocks: int | None = None) -> Iterator[tuple[Way, Way]]:
    """Our way and mlx-vlm's to evaluated embeddings [tokens, hidden_size]."""
    family = FAMILIES[name]
    config = {"model_type": name, **copy.deepcopy(family.config)}
    if real:
        config["vision_config"] |= family.real
        config.get("text_config", {}).update(family.real_text)
    if blocks:
        config["vision_config"] = with_blocks(config["vision_config"], blocks)
    vision = config["vision_config"]
    noise = np.random.default_rng(1).integers(0, 256, (*PHOTO[::-1], 3), dtype=np.uint8)
    photo = Image.fromarray(noise)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        theirs = mlx_vlm_model(name, copy.deepcopy(config))
        write_checkpoint(folder, family, config, family.settings(vision), theirs)
        add_on = find_add_on(name)
        assert add_on is not None
        ours = add_on(folder, config)
        decoder = _Decoder(getattr(theirs.language_model, "model", theirs.language_model))
        picture = load_picture(photo)
        prompt = ours.expand_prompt([1, 2, IMAGE, 3, 4], [picture])
        tokens = mx.array(prompt.tokens)

        def our_way() -> mx.array:
            made = ours.compute_embeddings(decoder, tokens, prompt.spans).input_embeddings
            mx.eval(made)
            assert made is not None
            return made

        def their_way() -> mx.array:
            made = family.process(vision, photo) | family.beside(np.array(prompt.tokens))
            pixels = made.pop("pixel_values")
            if not isinstance(pixels, list):
                pixels = mx.array(pixels)
            made["mask"] = mx.ones((1, len(prompt.tokens)), dtype=mx.int32)
            features = theirs.get_input_embeddings(tokens[None], pixels, **made)
            mx.eval(features.inputs_embeds)
            return features.inputs_embeds[0]

        yield our_way, their_way


def check_same(name: str, ours: mx.array, theirs: mx.array) -> None:
    """Raise `AssertionError` if the two make something else of the photograph."""
    assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
    apart = off(ours, theirs)
    assert FAMILIES[name].off or apart < 1e-4, (name, apart)


def off(ours: mx.array, theirs: mx.array) -> float:
    """How far the embeddings of the two are apart, by the length of the worst row."""
    apart = mx.linalg.norm(ours - theirs, axis=-1) / mx.linalg.norm(theirs, axis=-1)
    return float(apart.max())


class _Decoder(nn.Module):
    """What an add-on needs of a decoder: its word embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        model.embed = lambda tokens: (
            model.embed_tokens(tokens) * model.embed_tokens.weight.shape[1] ** 0.5
        )


def rows(
    names: Sequence[str], rounds: int, blocks: int | None
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Each family's name and size, with the seconds of our rounds and of mlx-vlm's."""
    for name in names:
        for real in (False, True) if FAMILIES[name].tiny else (True,):
            ours, theirs = measure(name, real, rounds if real else 5 * rounds, blocks)
            yield f"embeddings, {name}, {'real' if real else 'tiny'}", ours, theirs
