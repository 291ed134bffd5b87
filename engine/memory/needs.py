"""How much memory a request takes beside the weights, known before any of it is spent."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.memory.kv_state import arrays
from engine.options import GenerationOptions
from engine.prompts.prompt import Prompt
from vision_add_ons.vit_blocks import writes_scores

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

BLOCK = 256
"""mlx-lm's KV caches make room for so many tokens at a time."""

HIDDEN_ROWS, INNER_ROWS = 7, 4
"""How many rows as wide as the decoder, and as its feed-forward layers, there are at once for each
token of a chunk: as measured with `mx.get_peak_memory`, see `scripts/check_memory.py`."""

STREAM_ROWS, STREAMS_ROWS = 10, 8
"""The same of decoders with several streams of states (Gemma 3n's AltUp): for one of them, and for
each, in float32 whatever they compute in."""

LAYERED_ROWS = 3
"""The same of what all layers are given for a token beside its embedding."""

ROUNDED = 2**17
"""Bytes by which MLX rounds all these up together, as measured: much of what a tiny model takes."""


@dataclass(frozen=True)
class _Layer:
    """The KV cache of one layer: `fixed` bytes, and `each` for a token."""

    fixed: int
    each: float
    window: int | None
    """The tokens after which it drops the oldest; None if it never does."""

    def nbytes(self, tokens: int, chunk: int) -> int:
        if self.window is not None:
            tokens = min(tokens, self.window + chunk)
        return self.fixed + int(self.each * (-(-tokens // BLOCK) * BLOCK))


@dataclass(frozen=True)
class Shape:
    """What there is to read, as far as its memory goes."""

    tokens: int
    """Of all of the prompt."""
    cached: int = 0
    """Those that are there already."""
    whole: int = 0
    """Of the longest range that is run in one piece."""
    sees: bool = False
    """Whether there are pictures in it."""
    images: tuple[tuple[int, int], ...] = ()
    """The width and height of those that are to be encoded."""

    @classmethod
    def of(cls, prompt: Prompt, encoded: Callable[[str], bool], cached: int = 0) -> "Shape":
        """`encoded` says of a picture's digest whether its rows are there already."""
        spans = [span for span in prompt.spans if span.start >= cached]
        sizes = tuple(s.picture.size for s in spans if not encoded(s.picture.digest))
        whole = max((end - start for start, end in prompt.bidirectional), default=0)
        return cls(len(prompt.tokens), cached, whole, bool(spans), sizes)


class Needs:
    """Estimates for one model, from the shapes of its arrays: nothing is computed for them."""

    def __init__(self, kit: "ModelKit") -> None:
        self._add_on = kit.add_on
        config = kit.config.decoder
        hidden = int(config.get("hidden_size") or 0)
        heads = int(config.get("num_attention_heads") or 1)
        self._layers, dtype = _layers_of(kit)
        self._itemsize = dtype.size
        self._row = hidden * dtype.size
        self._each, self._streams = _bytes_of_a_token(config, hidden, dtype.size)
        width = int(config.get("head_dim") or hidden // heads or 1)
        # Where no kernel does it at once, each head's scores, and the mask of them all.
        written = writes_scores(heads, BLOCK, 2 * BLOCK, width, dtype)
        self._scores = (heads + 1) * 4 if written else 0

    def kv(self, tokens: int, options: GenerationOptions) -> int:
        """The bytes of the KV caches of so many tokens of prompt and answer, while they grow."""
        chunk = min(options.prefill_step_size, tokens)

        def plain(length: int) -> int:
            each = [(layer.nbytes(length, chunk), count) for layer, count in self._layers]
            # One that grows is there twice.
            return sum(n * count for n, count in each) + max((n for n, _ in each), default=0)

        if options.kv_bits is None or tokens < options.quantized_kv_start:
            return plain(tokens)
        # Values of `kv_bits`, and a scale and a bias for each group of them.
        share = options.kv_bits / 8 + 2 * self._itemsize / options.kv_group_size
        # What comes first is quantized once it is long enough: until then it is there as it is.
        before = min(tokens, options.quantized_kv_start + chunk)
        return max(int(plain(tokens) * share / self._itemsize), plain(before))

    def tokens(self, nbytes: int, options: GenerationOptions) -> int:
        """How many tokens' KV caches so many bytes are enough for, as far as they grow at all."""
        low, high = 0, 2**31
        while low < high:
            middle = (low + high + 1) // 2
            if self.kv(middle, options) <= nbytes:
                low = middle
            else:
                high = middle - 1
        return low

    def reading(self, shape: "Shape", step: int) -> int:
        """The most bytes that the reading of a prompt, in chunks of at most `step` tokens, holds at
        once beside its KV caches."""
        new = max(1, shape.tokens - shape.cached)
        step = min(max(step, shape.whole), new)
        rest = new % step
        # The last whole chunk sees nearly all of the prompt, what is left after it the rest too.
        scores = max(step * (shape.tokens - rest), rest * shape.tokens)
        seeing = step * self._each + self._scores * scores
        running = max(seeing, step * self._streams) + ROUNDED
        if not shape.sees:
            return running
        assert self._add_on is not None
        towers = [self._add_on.tower_bytes(size) or 0 for size in shape.images]
        # The pictures', what they have beside them, and the embeddings they go into.
        rows = (2 + self._add_on.features) * new * self._row
        return rows + max([running, *towers])


def _bytes_of_a_token(config: dict[str, Any], hidden: int, itemsize: int) -> tuple[int, int]:
    """What there is at once for each token of a chunk, beside scores: while the tokens see each
    other, and while states of several streams are mixed, where there are any."""
    inner = config.get("intermediate_size") or 4 * hidden
    widest = max(inner) if isinstance(inner, list) else inner  # some tell each layer's
    seeing = (HIDDEN_ROWS * hidden + INNER_ROWS * int(widest)) * itemsize
    layers = int(config.get("num_hidden_layers") or 0)
    layered = layers * int(config.get("hidden_size_per_layer_input") or 0)
    kept = LAYERED_ROWS * layered * itemsize
    streams = int(config.get("altup_num_inputs") or 0)
    if not streams:
        return kept + seeing, 0
    mixing = (STREAM_ROWS + STREAMS_ROWS * streams) * hidden * 4
    return kept + seeing + 2 * streams * hidden * 4, kept + mixing


def _layers_of(kit: "ModelKit") -> tuple[list[tuple[_Layer, int]], mx.Dtype]:
    """The kinds of layers and how many there are of each, and the KV caches' dtype: from prompts
    that are never computed."""
    model: Any = kit.text_model
    if model is None:
        return [], mx.float32
    shorter, longer = kit.make_cache(), kit.make_cache()
    for caches, tokens in ((shorter, BLOCK), (longer, 2 * BLOCK)):
        model(mx.zeros((1, tokens), dtype=mx.int32), cache=caches)
    layers = []
    for a, b in zip(shorter, longer, strict=True):
        each = (b.nbytes - a.nbytes) / BLOCK
        layers.append(_Layer(a.nbytes - int(each * BLOCK), each, getattr(a, "max_size", None)))
    held = [array.dtype for cache in longer for array in arrays(cache.state)]
    floats = [dtype for dtype in held if mx.issubdtype(dtype, mx.floating)]
    dtype = max(floats, key=lambda dtype: dtype.size, default=mx.float32)
    return list(Counter(layers).items()), dtype
