"""The figures that an answer ends with."""

from typing import Any

from engine.events import Finished

FINISH = {"stop": "stop", "stop_string": "stop", "length": "length"}
"""OpenAI's words for why an answer ended; the others are errors there."""


def usage(finished: Finished) -> dict[str, Any]:
    """See `engine.server.answers.Usage`."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
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
        },
    }
