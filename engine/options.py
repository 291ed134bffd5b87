"""How an answer is generated: one immutable value per request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from engine.schema import Schema
from vision_add_ons.errors import OptionError

LARGEST = 2**31 - 1
"""The largest whole number that any option takes, a seed aside."""

BOUNDS: dict[str, tuple[float, float]] = {
    "max_tokens": (1, LARGEST),
    "max_thinking_tokens": (0, LARGEST),
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, LARGEST),
    "min_p": (0.0, 1.0),
    "seed": (0, 2**64 - 1),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "penalty_context": (1, LARGEST),
    "logit_bias": (-100.0, 100.0),
    "top_logprobs": (0, 100),
    "draft_tokens": (0, 64),
    "max_context": (2, LARGEST),
    "kv_bits": (2, 8),
    "kv_group_size": (32, 128),
    "quantized_kv_start": (0, LARGEST),
    "prefill_step_size": (1, LARGEST),
    "max_image_size": (1, LARGEST),
}
"""The smallest and the largest value of each option that is a number. Within them, and all of them
together, a model's logits stay finite: penalties and biases are far from where float32 ends."""


class _Fixed(dict[int, float]):
    """A dict that cannot change, and that can be copied, pickled and written as any other."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("options do not change; dataclasses.replace makes others of them")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type["_Fixed"], tuple[dict[int, float]]]:
        return _Fixed, (dict(self),)


@dataclass(frozen=True)
class GenerationOptions:
    """Options of one request. Values out of range raise `OptionError`, which is a ValueError.

    `BOUNDS` holds the ranges; each includes its ends. Sampling and penalties are mlx-lm's, and
    computed in float32 where a checkpoint's own numbers could not hold them; penalties look at the
    last `penalty_context` tokens of prompt and answer together, however much of the prompt came
    from the cache. Options can be compared, copied and pickled.
    """

    max_tokens: int | None = 512
    """At most so many tokens are generated: 1 to 2**31 - 1. None: as many as the context holds; if
    memory is short of that, its share beside as many others as may be at work, or 4,096."""
    temperature: float = 0.0
    """0 takes the likeliest token; else tokens are drawn from softmax(logits / temperature). 0 to
    100; below 1e-6 is as 0."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability: 0 to 1, which is all."""
    top_k: int = 0
    """Draw from so many likeliest tokens: 0, which is all, to 2**31 - 1."""
    min_p: float = 0.0
    """Draw from tokens at least this likely, relative to the likeliest: 0, which is all, to 1."""
    seed: int | None = None
    """Two requests with one seed draw alike: 0 to 2**64 - 1. None: a fresh one, told in
    `Finished.seed`."""
    repetition_penalty: float = 1.0
    """Above 1, logits of recent tokens are divided by it (multiplied where negative): 0.01 to
    100."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that occurred recently: -100 to 100."""
    frequency_penalty: float = 0.0
    """The same, for each time that they occurred: -100 to 100."""
    penalty_context: int = 20
    """How many of the last tokens are recent: 1 to 2**31 - 1."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the logits of these token ids: -100 to 100. It is kept as a copy, and read only."""
    stop: str | Sequence[str] = ()
    """The answer ends before any of these texts. Case counts."""
    schema: Schema | Mapping[str, Any] | Sequence[str] | None = None
    """What the answer has to be: a `Schema`, a JSON schema as an object, or a list of choices. An
    answer that `max_tokens` or a stop string ends is only the start of one. It becomes a
    `Schema`."""
    thinking: bool | None = None
    """Whether the model thinks before it answers, where its chat template leaves that open; None:
    as the template has it. A model that cannot think takes False."""
    max_thinking_tokens: int | None = None
    """A thought is ended when it has so many tokens: 0 to 2**31 - 1; None: when the model ends it.
    `max_tokens` counts them too. Of no effect on a model that does not think, and on prompts that
    no chat template wrote."""
    logprobs: bool = False
    """Tell each token's log-probability (before temperature and filters, after penalties): always
    a finite number."""
    top_logprobs: int = 0
    """Tell so many likeliest alternatives at each token, 0 to 100. What temperature and filters
    keep from being drawn is told as well; a token that the model itself rules out, by a logit of
    -infinity, is not."""
    draft_tokens: int | None = None
    """Of an engine that drafts (see `engine.load`), how many tokens are guessed at once while the
    answer is alone: 0, which is none, to 64; None: as many as pay, by what was right so far."""
    max_context: int | None = None
    """A cap on prompt and answer together, in tokens, below the model's own: 2 to 2**31 - 1."""
    kv_bits: int | None = None
    """Quantize the KV cache to 2, 4 or 8 bits; None keeps it as it is."""
    kv_group_size: int = 64
    """Values that share a scale in a quantized KV cache: 32, 64 or 128."""
    quantized_kv_start: int = 5000
    """Tokens in the cache from which on it is quantized: 0 to 2**31 - 1."""
    prefill_step_size: int = 2048
    """Prompt tokens run at once, 1 to 2**31 - 1; cancelling waits for at most one such step, or one
    picture."""

    max_image_size: int | None = None
    """Shrink pictures whose longer side has more pixels than this, before anything else: 1 to
    2**31 - 1."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
            raise OptionError("stop must be texts of at least one character")
        biases = self.logit_bias or {}
        if not isinstance(biases, Mapping):
            raise OptionError("logit_bias must be a mapping of token ids to biases")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "logit_bias", _Fixed(biases))
        if self.schema is not None:
            object.__setattr__(self, "schema", Schema.of(self.schema))
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            if name == "logit_bias":
                for token, bias in value.items():
                    _check("a token id in logit_bias", token, (0, LARGEST))
                    _check("a bias in logit_bias", bias, bounds)
            elif value is not None or name not in _MAY_BE_NONE:
                _check(name, value, bounds)
        if self.kv_bits not in (None, 2, 4, 8):
            raise OptionError(f"kv_bits must be 2, 4, 8 or None, not {self.kv_bits}")
        if self.kv_group_size not in (32, 64, 128):
            raise OptionError(f"kv_group_size must be 32, 64 or 128, not {self.kv_group_size}")
        if not isinstance(self.logprobs, bool):
            raise OptionError(f"logprobs must be True or False, not {_shown(self.logprobs)}")
        if not isinstance(self.thinking, bool | None):
            raise OptionError(f"thinking must be True, False or None, not {_shown(self.thinking)}")

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


_MAY_BE_NONE = (
    "max_tokens",
    "max_thinking_tokens",
    "seed",
    "draft_tokens",
    "max_context",
    "kv_bits",
    "max_image_size",
)


def _check(name: str, value: Any, bounds: tuple[float, float]) -> None:
    low, high = bounds
    whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "an integer" if whole else "a finite number"
        raise OptionError(f"{name} must be {kind}, not {_shown(value)}")
    if low <= value <= high:
        return
    if value != value:
        raise OptionError(f"{name} must be a finite number, not {value}")
    bound = f"at least {low}" if value < low else f"at most {high}"
    raise OptionError(f"{name} must be {bound}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value for a message: short, whatever it is."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number that large"
    return f"{value!r:.60}"
