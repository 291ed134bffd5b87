"""How an answer is generated: one immutable value per request."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from vision_add_ons.errors import OptionError


@dataclass(frozen=True)
class GenerationOptions:
    """Options of one request. Values out of range raise `OptionError`, which is a ValueError.

    Sampling and penalties are mlx-lm's; penalties look at the last `penalty_context` tokens of
    prompt and answer together, however much of the prompt came from the cache.
    """

    max_tokens: int = 512
    """At most so many tokens are generated."""
    temperature: float = 0.0
    """0 takes the likeliest token; else tokens are drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; 1 for all."""
    top_k: int = 0
    """Draw from so many likeliest tokens; 0 for all."""
    min_p: float = 0.0
    """Draw from tokens at least this likely, relative to the likeliest."""
    seed: int | None = None
    """Two requests with one seed draw alike. None: a fresh one, told in `Finished.seed`."""
    repetition_penalty: float = 1.0
    """Above 1, logits of recent tokens are divided by it (multiplied where negative)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that occurred recently."""
    frequency_penalty: float = 0.0
    """The same, for each time that they occurred."""
    penalty_context: int = 20
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these token ids."""
    stop: str | Sequence[str] = ()
    """The answer ends before any of these texts. Case counts."""
    logprobs: bool = False
    """Tell each token's log-probability (before temperature and filters, after penalties)."""
    top_logprobs: int = 0
    """Tell the likeliest alternatives at each token, at most 100."""
    max_context: int | None = None
    """A cap on prompt and answer together, in tokens, below the model's own."""
    kv_bits: int | None = None
    """Quantize the KV cache to 2, 4 or 8 bits; None keeps it as it is."""
    kv_group_size: int = 64
    """Values that share a scale in a quantized KV cache: 32, 64 or 128."""
    quantized_kv_start: int = 5000
    """Tokens in the cache from which on it is quantized."""
    prefill_step_size: int = 2048
    """Prompt tokens run at once; cancelling waits for at most one such step, or one picture."""

    max_image_size: int | None = None
    """Shrink pictures whose longer side has more pixels than this, before anything else."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
            raise OptionError("stop must be texts of at least one character")
        biases = self.logit_bias or {}
        if not isinstance(biases, Mapping):
            raise OptionError("logit_bias must be a mapping of token ids to biases")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(biases)))
        _integer("max_tokens", self.max_tokens, 1)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _integer("top_k", self.top_k, 0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf)
        if self.repetition_penalty == 0:
            raise OptionError("repetition_penalty must be above 0; 1 leaves the logits alone")
        _number("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        _number("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        _integer("penalty_context", self.penalty_context, 1, 2**31 - 1)
        _integer("top_logprobs", self.top_logprobs, 0, 100)
        _integer("kv_group_size", self.kv_group_size, 1)
        _integer("quantized_kv_start", self.quantized_kv_start, 0)
        _integer("prefill_step_size", self.prefill_step_size, 1)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.max_context is not None:
            _integer("max_context", self.max_context, 2)
        if self.max_image_size is not None:
            _integer("max_image_size", self.max_image_size, 1)
        if self.kv_bits is not None:
            _integer("kv_bits", self.kv_bits, 2, 8)
        if self.kv_bits not in (None, 2, 4, 8):
            raise OptionError(f"kv_bits must be 2, 4, 8 or None, not {self.kv_bits}")
        if self.kv_group_size not in (32, 64, 128):
            raise OptionError(f"kv_group_size must be 32, 64 or 128, not {self.kv_group_size}")
        if not isinstance(self.logprobs, bool):
            raise OptionError(f"logprobs must be True or False, not {_shown(self.logprobs)}")
        for token, bias in self.logit_bias.items():
            _integer("a token id in logit_bias", token, 0)
            _number("a bias in logit_bias", bias, -math.inf, math.inf)

    @property
    def kv_variant(self) -> tuple[int, int, int] | None:
        """What sets this request's KV cache apart from those of other requests."""
        if self.kv_bits is None:
            return None
        return self.kv_bits, self.kv_group_size, self.quantized_kv_start

    def context_limit(self, of_model: int | None) -> int | None:
        """The smaller of `max_context` and the model's own limit; None if neither is set."""
        limits = [limit for limit in (self.max_context, of_model) if limit is not None]
        return min(limits) if limits else None


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} must be an integer, not {_shown(value)}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise OptionError(f"{name} must be {bounds}, not {_shown(value)}")


def _number(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # float32 is what the logits are in; larger numbers are no numbers there.
    if not number or not abs(value) <= 3e38:
        raise OptionError(f"{name} must be a finite number, not {_shown(value)}")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise OptionError(f"{name} must be {bounds}, not {value}")


def _shown(value: Any) -> str:
    """A value for a message: short, whatever it is."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number that large"
    return f"{value!r:.60}"
