"""A request's parameters as the engine's options."""

import secrets
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from engine.options import GenerationOptions
from engine.prompts.thought import SWITCHES
from engine.server.formats import schema_of
from engine.server.sampling import Conversing, Sampling
from engine.server.schemas import ChatRequest, CompletionRequest, ObjectFormat, SchemaFormat

COMPLETION_TOKENS = 16
"""OpenAI's default for the most tokens of a completion."""

EFFORT = "reasoning_effort"
"""A variable that some chat templates know."""

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
    "max_thinking_tokens",
    "draft_tokens",
    "stop",
)


def chat_options(asked: ChatRequest, defaults: GenerationOptions) -> GenerationOptions:
    """Raises `OptionError`."""
    given = conversing(asked, defaults)
    if asked.logprobs:
        given |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    match asked.response_format:
        case ObjectFormat():
            given["schema"] = schema_of(asked.response_format)
        case SchemaFormat():
            given["schema"] = schema_of(asked.response_format.json_schema)
    return replace(defaults, **given)


def template_variables(asked: Conversing, known: Collection[str]) -> dict[str, Any]:
    """What the chat template is told beside messages, of the names that it knows."""
    told = dict(asked.chat_template_kwargs or {})
    effort = asked.effort
    if effort is None or effort == "none":
        return told
    if EFFORT in known:
        told.setdefault(EFFORT, effort)
    for name in SWITCHES:
        if name in known and asked.enable_thinking is None:
            told.setdefault(name, True)
    return told


def completion_options(asked: CompletionRequest, defaults: GenerationOptions) -> GenerationOptions:
    """Raises `OptionError`."""
    given = {"max_tokens": COMPLETION_TOKENS} | _given(asked, defaults)
    if asked.logprobs is not None:
        given |= {"logprobs": True, "top_logprobs": asked.logprobs}
    return replace(defaults, **given)


def several(options: GenerationOptions, count: int) -> list[GenerationOptions]:
    """The options of so many answers: with seeds that follow from the first one's."""
    if count == 1:
        return [options]
    first = secrets.randbits(53) if options.seed is None else options.seed
    return [replace(options, seed=(first + i) % 2**64) for i in range(count)]


def conversing(asked: Conversing, defaults: GenerationOptions) -> dict[str, Any]:
    """The options that a conversation's request gives, of those that all of them may."""
    given = _given(asked, defaults)
    if asked.thinking is not None:
        given["thinking"] = asked.thinking
    return given


def _given(asked: Sampling, defaults: GenerationOptions) -> dict[str, Any]:
    named = {name: asked.asked(name) for name in (*_SAME, "seed", "max_context")}
    given = {name: value for name, value in named.items() if value is not None}
    if given.get("max_tokens") == -1:
        given["max_tokens"] = None
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if "seed" in given:
        given["seed"] %= 2**64  # OpenAI's seeds have a sign
    if "max_context" in given and defaults.max_context is not None:
        given["max_context"] = min(given["max_context"], defaults.max_context)
    if asked.logit_bias:
        given["logit_bias"] = {int(token): bias for token, bias in asked.logit_bias.items()}
    return given
