"""Room for requests: what they will take beside the weights is known before they begin."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from PIL import Image

from engine.images import shrunk
from engine.memory.budget import Budget
from engine.memory.features import FeatureCache
from engine.memory.kv_state import arrays, nbytes
from engine.options import GenerationOptions
from vision_add_ons.errors import ImageError, NotEnoughMemory
from vision_add_ons.vit_blocks import writes_scores

if TYPE_CHECKING:
    from engine.decoding.answer import Answer
    from engine.prompts.builder import Prompt
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

LEAST_STEP = 64
"""Tokens of the smallest chunks in which a prompt is read where memory is short."""

LEAST_SHARE = 4096
"""Tokens that an answer without a `max_tokens` may have, where fewer would be its share."""

SIDES = (2048, 1536, 1024, 768, 512, 384, 256, 128)
"""Longest sides, in pixels, of which the largest that would fit is recommended."""


@dataclass(frozen=True)
class _Layer:
    """The KV cache of one layer: `fixed` bytes, and `each` for a token."""

    fixed: int
    each: float
    window: int | None
    """The tokens after which it drops the oldest; None if it never does."""


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
    def of(cls, prompt: "Prompt", encoded: Callable[[str], bool], cached: int = 0) -> "Shape":
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
        if options.kv_bits is None or tokens < options.quantized_kv_start:
            return self._plain(tokens, chunk)
        # Values of `kv_bits`, and a scale and a bias for each group of them.
        share = options.kv_bits / 8 + 2 * self._itemsize / options.kv_group_size
        # What comes first is quantized once it is long enough: until then it is there as it is.
        before = min(tokens, options.quantized_kv_start + chunk)
        quantized = int(self._plain(tokens, chunk) * share / self._itemsize)
        return max(quantized, self._plain(before, chunk))

    def _plain(self, tokens: int, chunk: int) -> int:
        """The same of caches that are not quantized, `chunk` tokens of which come at once."""
        total = largest = 0
        for layer, count in self._layers:
            held = tokens if layer.window is None else min(tokens, layer.window + chunk)
            nbytes = layer.fixed + int(layer.each * (-(-held // BLOCK) * BLOCK))
            total, largest = total + nbytes * count, max(largest, nbytes)
        return total + largest  # one that grows is there twice

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


class Room:
    """Admits requests while they fit beside the weights. For the engine's thread alone.

    Counted are the weights, the KV caches of all answers under way at their greatest length, and
    what the reading of those prompts takes that are not read yet, as if all were read together; if
    MLX holds more than that, so much. What is kept for later makes room.
    """

    def __init__(
        self,
        kit: "ModelKit",
        budget: Budget,
        features: FeatureCache,
        max_bytes: int | None,
        parallel: int = 1,
    ) -> None:
        """`max_bytes` is the most that MLX may hold in all; None for no bound.

        `parallel` answers may be under way at once.
        """
        self._kit = kit
        self._budget = budget
        self._features = features
        self._parallel = parallel
        self.max_bytes = max_bytes
        self.needs = Needs(kit)
        self.drafts: Needs | None = None
        """Of the model that drafts, which has KV caches of its own."""
        self._weights = kit.report.decoder_bytes + kit.report.vision_bytes
        self._others = max(0, mx.get_active_memory() - self._weights)
        """What the process held beside this model when it was loaded: another's weights."""
        self._held: dict[Answer, tuple[int, int]] = {}
        """Of each answer under way, the bytes of its KV caches, and those that reading it takes."""
        self.padding = 0.0
        """Bytes by which rows that are decoded together are padded."""

    def admits(self, answer: "Answer") -> bool:
        """Whether an answer may begin now; if so, it counts until it has ended.

        False where it has to wait until others have ended. Raises `NotEnoughMemory` where that
        would not help. One for all of whose tokens there would not be room, though for its prompt,
        is made as long as there is.
        """
        if self.max_bytes is None:
            return True
        total, options, needs = len(answer.prompt.tokens), answer.options, self.needs
        shape = Shape.of(answer.prompt, self._features.knows, answer.cached)
        reading = needs.reading(shape, answer.step)
        if options.max_tokens is None:
            answer.limit = None
            answer.limit = self._share(answer, reading)
        kv = self._kv(total + answer.max_tokens, options)
        free = self._beside() - kv
        if free < reading + self._budget.nbytes and answer.kv is not None:
            free = self._beside(nbytes(answer.kv, {})) - kv
        if self._held:
            # What it has of earlier turns is copied when it joins others.
            reading += needs.kv(answer.cached, options) if answer.cached else 0
            if free < reading:
                return False
        while free < reading and answer.step > LEAST_STEP:
            # A prompt can be read in smaller chunks, which takes longer.
            answer.step = max(LEAST_STEP, answer.step // 2)
            reading = needs.reading(shape, answer.step)
        if free < reading:
            fits = self.tokens(max(0, free + kv - reading), options) - total
            if fits < 1:
                raise self._refusal(answer, reading + self._kv(total + 1, options))
            answer.limit, kv, free = fits, kv + free - reading, reading
        self._budget.shrink(free - reading)
        self._held[answer] = kv, reading
        return True

    def _kv(self, tokens: int, options: GenerationOptions) -> int:
        """The bytes of an answer's KV caches, and those of what drafts for it, as `Needs.kv`."""
        kv = self.needs.kv(tokens, options)
        if self.drafts is not None and options.draft_tokens != 0 and options.kv_bits is None:
            kv += self.drafts.kv(tokens, options)
        return kv

    def tokens(self, nbytes: int, options: GenerationOptions) -> int:
        """How many tokens' KV caches so many bytes are enough for, as far as they grow at all."""
        low, high = 0, 2**31
        while low < high:
            middle = (low + high + 1) // 2
            if self._kv(middle, options) <= nbytes:
                low = middle
            else:
                high = middle - 1
        return low

    def leave(self, answer: "Answer") -> None:
        """Count an answer no more, which has ended."""
        self._held.pop(answer, None)
        if not self._held:
            self.padding = 0.0

    def has_read(self, answer: "Answer") -> None:
        """Count no more what the reading of a prompt takes."""
        if answer in self._held:
            self._held[answer] = self._held[answer][0], 0

    def _share(self, answer: "Answer", reading: int) -> int:
        """How many tokens an answer gets that is to have as many as there can be.

        All that its context holds would keep others waiting for memory that it may never use.
        """
        places = max(1, self._parallel - len(self._held))
        total = len(answer.prompt.tokens)
        share = max(0, self._beside() - reading) // places
        fits = self.tokens(share, answer.options) - total
        return min(answer.max_tokens, max(LEAST_SHARE, fits))

    @property
    def spare(self) -> float:
        """Bytes that nobody needs, with what is kept for later left alone."""
        return math.inf if self.max_bytes is None else self._beside() - self._budget.nbytes

    def copies(self, answer: "Answer") -> bool:
        """Whether the KV caches of an answer under way may be there twice, for others to go on."""
        return self._held.get(answer, (0, 0))[0] <= self.spare

    def levels(self, answers: Sequence["Answer"]) -> bool:
        """Count each of several whose prompts are read together as the longest, while they are.

        False where there is no room for that.
        """
        held = {answer: self._held[answer] for answer in answers if answer in self._held}
        most = sum(max(kind) for kind in zip(*held.values(), strict=True))
        if sum(most - kv - reading for kv, reading in held.values()) > self.spare:
            return False
        self._held |= {answer: (kv, most - kv) for answer, (kv, _) in held.items()}
        return True

    def _beside(self, own: int = 0) -> int:
        """The bytes that there are beside the weights and what others under way take.

        `own` are those that an answer has taken already of what was kept.
        """
        assert self.max_bytes is not None
        held = mx.get_active_memory() - self._budget.nbytes - own
        reading = sum(reading for _, reading in self._held.values())
        caches = sum(kv for kv, _ in self._held.values())
        others = min(self._others, max(0, held - self._weights))
        taken = max(held, others + self._weights + caches + int(self.padding))
        return self.max_bytes - taken - reading

    def _refusal(self, answer: "Answer", needed: int) -> NotEnoughMemory:
        assert self.max_bytes is not None
        prompt = answer.prompt
        there = max(0, self.max_bytes - self._weights)
        text = (
            f"this prompt would need {_gigabytes(needed)} of memory beside the model's weights, "
            f"and {_gigabytes(there)} are there; "
        )
        longest = max((max(span.picture.size) for span in prompt.spans), default=0)
        for side in (side for side in SIDES if side < longest):
            with suppress(ImageError):  # so small, one side of it would vanish
                smaller = self._smaller(answer, side)
                if smaller <= there:
                    return NotEnoughMemory(
                        f"{text}max_image_size={side} needs {_gigabytes(smaller)}"
                    )
        return NotEnoughMemory(f"{text}shorten it, or start a new conversation")

    def _smaller(self, answer: "Answer", side: int) -> int:
        """What a prompt would need whose pictures are at most so long."""
        add_on, prompt = self._kit.add_on, answer.prompt
        assert add_on is not None
        shape = Shape.of(prompt, lambda _: False)
        sizes = tuple(shrunk(size, side) for size in shape.images)
        rows = sum(len(add_on.picture_tokens(_Sized(size))) for size in sizes)
        total = shape.tokens - sum(span.length for span in prompt.spans) + rows
        shape = replace(shape, tokens=total, whole=min(shape.whole, total), images=sizes)
        return self.needs.reading(shape, answer.step) + self._kv(total + 1, answer.options)


@dataclass(frozen=True)
class _Sized:
    """A picture of which the size alone is known."""

    size: tuple[int, int]
    digest: str = ""

    def pixels(self) -> Image.Image:
        return Image.new("RGB", self.size)

    def release(self) -> None:
        pass


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 // 10 else f"{count / 2**20:.0f} MiB"
