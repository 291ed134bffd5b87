"""The figures that an answer ends with."""

from collections.abc import Sequence
from typing import Any

from engine.events import Finished

FINISH = {"stop": "stop", "stop_string": "stop", "length": "length", "tool_calls": "tool_calls"}
"""OpenAI's words for why an answer ended; the others are errors there."""


def usage(ends: Sequence[Finished], prompts: int = 1) -> dict[str, Any]:
    """See `engine.server.answers.Usage`. `ends` are those of all answers to each of the `prompts`,
    one prompt's after the other's."""
    told = _of_one(ends[0])
    if len(ends) == 1:
        return told
    each = len(ends) // prompts
    firsts = ends[::each]
    told["prompt_tokens"] = sum(end.prompt_tokens for end in firsts)
    told["completion_tokens"] = sum(end.completion_tokens for end in ends)
    told["total_tokens"] = told["prompt_tokens"] + told["completion_tokens"]
    cached = sum(end.cached_tokens for end in firsts)
    told["prompt_tokens_details"]["cached_tokens"] = cached
    thought = sum(end.reasoning_tokens for end in ends)
    details = told["completion_tokens_details"]
    details["reasoning_tokens"] = thought
    details["accepted_prediction_tokens"] = sum(end.drafted_tokens for end in ends)
    own = told["sightline"]
    for name in ("images_encoded", "images_reused", "disk_tokens"):
        own[name] = sum(getattr(end, name) for end in ends)
    own["broken_calls"] = sum(len(end.broken_calls) for end in ends)
    return told


def _of_one(finished: Finished) -> dict[str, Any]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": finished.reasoning_tokens,
            "accepted_prediction_tokens": finished.drafted_tokens,
        },
        "sightline": {
            "images_encoded": finished.images_encoded,
            "images_reused": finished.images_reused,
            "disk_tokens": finished.disk_tokens,
            "queue_seconds": finished.queue_seconds,
            "prefill_seconds": finished.prefill_seconds,
            "time_to_first_token": finished.time_to_first_token,
            "tokens_per_second": finished.tokens_per_second,
            "seed": finished.seed,
            "stop_string": finished.stop_string,
            "broken_calls": len(finished.broken_calls),
        },
    }
