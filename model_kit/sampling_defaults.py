"""How a checkpoint wants its answers drawn: the numbers of its generation_config.json.

What they mean, and what holds where one is left out, is as in transformers' `GenerationConfig`; but
there a file that gives a temperature and no `do_sample` draws nothing, and whoever wrote one meant
it to.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (math.ulp(0.0), 1.0),
    "top_k": (0, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}
"""The smallest and the largest value of each that is heeded."""

TEMPERATURE, TOP_K = 1.0, 50
"""transformers' own, where tokens are drawn and the file does not say how."""


@dataclass
class SamplingDefaults:
    """What a checkpoint asks for where nobody else asks for anything."""

    values: dict[str, float] = field(default_factory=dict)
    """By the names of `BOUNDS`; none of them where the likeliest token is to win."""
    assumed: list[str] = field(default_factory=list)
    """One line for each value that was taken for one that is left out."""
    ignored: list[str] = field(default_factory=list)
    """One line for each value that is none."""


def sampling_defaults(config: Mapping[str, Any]) -> SamplingDefaults:
    """Read generation_config.json's object. Odd values are left out, and told."""
    found = SamplingDefaults()
    given = {name: _number(name, config.get(name), found.ignored) for name in BOUNDS}
    draws = config.get("do_sample")
    if draws is not None and not isinstance(draws, bool):
        found.ignored.append(f"generation_config.json's do_sample {_brief(draws)} is ignored")
        draws = None
    if given["repetition_penalty"] is not None:
        found.values["repetition_penalty"] = given["repetition_penalty"]
    drawing = ("temperature", "top_p", "top_k", "min_p")
    if draws is False or (draws is None and all(given[name] is None for name in drawing)):
        return found
    if draws is None and given["temperature"] != 0:
        found.assumed.append("do_sample: true (absent; generation_config.json says how to draw)")
    for name, default in (("temperature", TEMPERATURE), ("top_k", TOP_K)):
        if given[name] is None:
            given[name] = default
            found.assumed.append(f"{name}: {default} (default of transformers)")
    found.values |= {name: value for name in drawing if (value := given[name]) is not None}
    return found


def _number(name: str, value: Any, ignored: list[str]) -> float | None:
    """A value within its bounds, else None."""
    if value is None:
        return None
    low, high = BOUNDS[name]
    number = value
    if name == "top_k" and isinstance(number, float) and number.is_integer():
        number = int(number)
    if name == "top_k" and number == -1:
        number = 0  # vLLM's word for all
    right = int if name == "top_k" else int | float
    if isinstance(number, bool) or not isinstance(number, right) or not low <= number <= high:
        ignored.append(f"generation_config.json's {name} {_brief(value)} is ignored")
        return None
    return number


def _brief(value: Any) -> str:
    return f"{value!r:.40}"
