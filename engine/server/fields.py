"""What becomes of a request's fields that are not this server's own: the one table of them.

A field that stands neither here nor in `engine.server.schemas` is refused by its name.
"""

from typing import Any

IGNORED = (
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "verbosity",
    "prediction",
    "cache_control",
    "client_metadata",
    # Of other servers.
    "keep_alive",
    "ttl",
    "cache_prompt",
    "id_slot",
    "timings_per_token",
    "return_progress",
    "draft_model",
    "request_id",
    "priority",
    "provider",
    "usage",
    "xtc_threshold",
    "mirostat_tau",
    "mirostat_eta",
    "dynatemp_exponent",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
)
"""What cannot change an answer, or not without a field of `NEUTRAL`: taken whatever it says.

Notes for somebody's logs, what a service keeps, where and how fast it computes, and how much an
OpenAI model talks. The last eight are the details of ways of drawing that there are not.
"""

OTHER_NAMES = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "repetition_context_size": "penalty_context",
    "repeat_last_n": "penalty_context",
    "random_seed": "seed",
    "num_ctx": "max_context",
    "thinking_budget": "max_thinking_tokens",
    "num_draft_tokens": "draft_tokens",
}
"""What other servers (OpenAI's newer API, Ollama, llama.cpp, mlx-lm, Mistral's, Qwen's) call what
is here a parameter, or an option of the engine."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "moderation": (),
    "web_search_options": (),
    "suffix": ("",),
    "adapters": (),
    "typical_p": (1,),
    "typ_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "xtc_probability": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dynatemp_range": (0,),
    "dry_multiplier": (0,),
    "no_repeat_ngram_size": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""What would change the answer and cannot be honoured, with the values beside null that change
nothing, which clients send by default: any other is refused."""


def changes_nothing(name: str, value: Any) -> bool:
    """Whether a field may be there and left unread."""
    if name in IGNORED:
        return True
    if name not in NEUTRAL:
        return False
    # To Python, 1 is as true as True.
    same = (n for n in NEUTRAL[name] if isinstance(n, bool) is isinstance(value, bool))
    return value is None or any(value == neutral for neutral in same)


def allowed(name: str) -> list[Any]:
    """What a field of `NEUTRAL` may be."""
    return [None, *NEUTRAL.get(name, ())]


def describe_fields(schema: dict[str, Any]) -> None:
    """Name them in a request's JSON schema."""
    properties = schema["properties"]
    for name in IGNORED:
        properties.setdefault(name, {"description": "Of no effect."})
    for name in NEUTRAL:
        text = "Not supported: only what changes nothing."
        properties.setdefault(name, {"enum": allowed(name), "description": text})
