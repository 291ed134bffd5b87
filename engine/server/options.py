"""A request's parameters as the engine's options."""

from dataclasses import replace
from typing import Any

from engine.options import GenerationOptions
from engine.schema import Schema
from engine.server.schemas import (
    ChatRequest,
    CompletionRequest,
    JsonSchema,
    ObjectFormat,
    Sampling,
    SchemaFormat,
)

COMPLETION_TOKENS = 16
"""OpenAI's default for the most tokens of a completion."""

_SAME = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "penalty_context",
    "stop",
)


def chat_options(asked: ChatRequest, defaults: GenerationOptions) -> GenerationOptions:
    """Raises `OptionError`."""
    given = _given(asked)
    if asked.max_completion_tokens is not None:
        given["max_tokens"] = asked.max_completion_tokens
    if asked.logprobs:
        given |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    match asked.response_format:
        case ObjectFormat() | SchemaFormat(json_schema=JsonSchema(schema_=None)):
            given["schema"] = {"type": "object"}
        case SchemaFormat(json_schema=JsonSchema(schema_=schema)):
            given["schema"] = Schema.json(schema or True)
    return replace(defaults, **given)


def completion_options(asked: CompletionRequest, defaults: GenerationOptions) -> GenerationOptions:
    """Raises `OptionError`."""
    given = {"max_tokens": COMPLETION_TOKENS} | _given(asked)
    if asked.logprobs is not None:
        given |= {"logprobs": True, "top_logprobs": asked.logprobs}
    return replace(defaults, **given)


def _given(asked: Sampling) -> dict[str, Any]:
    given = {name: getattr(asked, name) for name in _SAME if getattr(asked, name) is not None}
    if asked.seed is not None:
        given["seed"] = asked.seed % 2**64  # OpenAI's seeds have a sign
    if asked.logit_bias:
        given["logit_bias"] = {int(token): bias for token, bias in asked.logit_bias.items()}
    return given
