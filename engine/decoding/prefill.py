"""Prompts run ahead of a loop of mlx-lm's, in chunks that fit their ranges.

mlx-lm's loop cuts a prompt every `prefill_step_size` tokens and always before the last one. A range
of tokens that see each other must not be cut, so a prompt that has one is run here, all but its
last token, and the loop goes on from there; so is each prompt of answers that are decoded together.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generation_stream, maybe_quantize_kv_cache
from mlx_lm.models.cache import trim_prompt_cache

from engine.options import GenerationOptions
from vision_add_ons.cache_views import Range
from vision_add_ons.errors import PromptError


def chunk_ends(total: int, step: int, whole: Sequence[Range]) -> list[int]:
    """Where to end each chunk of a prompt of `total` tokens, so that no range is cut.

    Chunks have at most `step` tokens, except those of a single longer range. `whole` is in
    ascending order, and its ranges do not overlap. The prompt's last token is in no chunk unless
    it belongs to a range that begins before it.
    """
    last = total - 1
    if any(start < last < end for start, end in whole):
        last = total
    ends = []
    done = 0
    while done < last:
        end = min(done + step, last)
        for start, stop in whole:
            if start < end < stop:
                end = start if start > done else min(stop, last)
        ends.append(end)
        done = end
    return ends


def prefill(
    model: nn.Module,
    tokens: Sequence[int],
    embeddings: mx.array | None,
    caches: list[Any],
    whole: Sequence[Range],
    options: GenerationOptions,
    step: Callable[[], int] | None = None,
    border: int | None = None,
) -> Iterator[int]:
    """Run all of `tokens` but the last through the decoder, as mlx-lm's `generate_step` would.

    Yields how many were run: 0, and after each chunk. `step` says of how many tokens the next chunk
    is, at most, instead of `prefill_step_size`; one ends where `border` tokens were run.
    `embeddings` has shape [len(tokens), hidden_size]; `whole` counts from the first of `tokens`.
    Changes `caches` in place. Raises `PromptError` if the last token would have to be taken back
    from caches that cannot.
    """
    total = len(tokens)
    prompt = mx.array(list(tokens))
    yield 0
    done = 0
    while True:
        size = options.prefill_step_size if step is None else step()
        if border is not None and done < border:
            size = min(size, border - done)
        ahead = chunk_ends(total - done, size, [(a - done, b - done) for a, b in whole])
        if done == total or not ahead:
            return
        end = done + ahead[0]
        with mx.stream(generation_stream):
            extra = {}
            if embeddings is not None:
                # Slices are arrays of their own: some decoders scale what they get in place.
                extra["input_embeddings"] = embeddings[done:end][None]
            model(prompt[done:end][None], cache=caches, **extra)
            maybe_quantize_kv_cache(
                caches, options.quantized_kv_start, options.kv_group_size, options.kv_bits
            )
            mx.eval([c.state for c in caches])
            mx.clear_cache()
            done = end
            # The last token of a range that ends the prompt was run with it. It is run once more
            # for its logits: what it adds to the caches is the same.
            if done == total and trim_prompt_cache(caches, 1) != 1:
                raise PromptError(
                    "a prompt longer than the model's sliding window cannot end with a picture; "
                    "let some text follow it"
                )
        yield min(done, total - 1)


def _size(left: int, step: int) -> int:
    """Of how many tokens the next chunk of padded prompts is, with `left` to be read.

    mlx-lm's rotating caches take a single token for one that is decoded, which they refuse before
    the padding is behind.
    """
    step = max(step, 2)
    if left - step == 1:
        return step - 1 if step > 2 else left
    return step


def prefill_together(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    caches: Sequence[Sequence[Any]],
    step: Callable[[], int],
    embeddings: Sequence[mx.array] = (),
) -> Generator[int, None, list[Any]]:
    """Run all tokens but the last of several prompts at once, as mlx-lm's batches do.

    `caches` are those of each; `embeddings`, [tokens, hidden_size] each, are run in place of the
    tokens if there are any. Yields how many tokens of the longest were run, after each chunk of at
    most `step`, or of two; returns the batch caches that then hold all of it.
    """
    lengths = [len(prompt) - 1 for prompt in prompts]
    longest = max(lengths)
    width = max(longest, 2) if longest > min(lengths) else longest
    padding = [width - length for length in lengths]
    padded = [[*prompt[:-1], *[0] * pad] for prompt, pad in zip(prompts, padding, strict=True)]
    tokens = mx.array(padded)
    with mx.stream(generation_stream):
        rows = [
            mx.pad(row[:-1], [(0, pad), (0, 0)])
            for row, pad in zip(embeddings, padding, strict=bool(embeddings))
        ]
        embedded = mx.stack(rows) if rows else None
        merged = [type(layer[0]).merge(list(layer)) for layer in zip(*caches, strict=True)]
        if any(padding):
            for cache in merged:
                cache.prepare(lengths=lengths, right_padding=padding)
    done = 0
    while done < width:
        end = min(done + _size(width - done, step()), width)
        with mx.stream(generation_stream):
            extra = {}
            if embedded is not None:
                extra["input_embeddings"] = embedded[:, done:end]
            model(tokens[:, done:end], cache=merged, **extra)
            mx.eval([c.state for c in merged])
            mx.clear_cache()
        done = end
        yield min(done, longest)
    with mx.stream(generation_stream):
        if any(padding):
            for cache in merged:
                cache.finalize()
            mx.eval([c.state for c in merged])
    return merged
