"""What a request may say. Anything else is refused, with a 400 that names it.

A parameter of OpenAI's that this server cannot honour may be given with the one value that
changes nothing, which is often null: clients send such values by default.
"""

import re
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from engine.options import BOUNDS, LARGEST

PART_TYPES = ("text", "image_url")
FORMATS = {"response_format": ("text", "json_object", "json_schema")}
"""Fields that are one of several objects, and the types that these name."""

Unsupported = Annotated[None, Field(description="Not supported; null at most.")]


def _no_list(value: Any) -> Any:
    return None if value in ([], {}) else value


Empty = Annotated[
    None, BeforeValidator(_no_list), Field(description="Not supported; null or empty at most.")
]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = BeforeValidator(_whole)
"""JSON knows no integers: 5.0 is 5. It stands behind the bounds, or /openapi.json lacks them."""
Positive = Annotated[int, Field(ge=1, le=LARGEST), _Whole]
Count = Annotated[int, Field(ge=0, le=LARGEST), _Whole]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), _Whole]
Alternatives = Annotated[int, Field(ge=0, le=20), _Whole]
One = Annotated[int, Field(ge=1, le=1), _Whole]


def _flag(value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise ValueError("must be false")  # to Python, 0 is as false as False
    return value


Off = Annotated[Literal[False] | None, BeforeValidator(_flag)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _within(name: str, **more: Any) -> Any:
    """A field with the engine's own bounds of an option; None if not given."""
    low, high = BOUNDS[name]
    return Field(None, ge=low, le=high, **more)


Bias = Annotated[float, Field(ge=BOUNDS["logit_bias"][0], le=BOUNDS["logit_bias"][1])]
MOST_BIASES = 1024


def _not_many(biases: Any) -> Any:
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:  # before each is complained about
        raise ValueError(f"names more than {MOST_BIASES:,} tokens")
    return biases


class Strict(BaseModel):
    """Values of exactly the type that is asked for, and no field but those below."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        """Names the first unknown field alone: pydantic would list a million of them."""
        for name in given if isinstance(given, dict) else ():
            if name not in cls._names():
                shown = name[:100].encode(errors="replace").decode()  # half characters too
                raise PydanticCustomError("unknown_field", "{name}", {"name": shown})
        return given

    @classmethod
    @cache
    def _names(cls) -> set[str]:
        """As a request writes them."""
        return {field.alias or name for name, field in cls.model_fields.items()}


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageURL(Strict):
    url: str = Field(
        min_length=1,
        description="A data URI, or base64. http(s) and file URLs only if the server allows them.",
    )
    detail: Literal["auto", "high", "low"] | None = Field(
        None, description='"low" shrinks the longer side to 512 pixels, else the picture stays.'
    )


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description='"developer" is another word for "system".'
    )
    content: str | Annotated[list[Part], Field(min_length=1, fail_fast=True)]
    # What a client sends back with an answer that it was given.
    name: Unsupported = None
    refusal: Unsupported = None
    annotations: Empty = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Empty = None


class StreamOptions(Strict):
    include_usage: bool | None = Field(
        None, description="Send one more chunk, with no choices and the usage, before [DONE]."
    )
    include_obfuscation: Off = None


class TextFormat(Strict):
    type: Literal["text"]


class ObjectFormat(Strict):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    name: str = Field(max_length=64, description="Of no effect.")
    description: str | None = Field(None, description="Of no effect.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON Schema; without one, any object."
    )
    strict: bool | None = Field(
        None, description="Of no effect: answers are held to it in any case."
    )


class SchemaFormat(Strict):
    """An answer that is JSON by a schema, unless it is cut off."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Sampling(Strict):
    """What both ways of asking share. Defaults are the engine's: the likeliest token wins."""

    model: str = Field(description="The id that /v1/models tells.")
    max_tokens: Positive | None = None
    temperature: float | None = Field(
        None, ge=0, le=2, description="0, the default, takes the likeliest token."
    )
    top_p: float | None = _within("top_p")
    top_k: Count | None = Field(None, description="Beside OpenAI's; 0 for all.")
    min_p: float | None = _within("min_p", description="Beside OpenAI's.")
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = _within(
        "repetition_penalty", description="Beside OpenAI's; 1 changes nothing."
    )
    penalty_context: Positive | None = Field(
        None,
        description="Beside OpenAI's: the tokens before, prompt included, that penalties look at.",
    )
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_not_many)] | None = Field(
        None,
        max_length=MOST_BIASES,
        description="By the token's id, as a text.",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(
        None,
        max_length=512,
        description="Whose request this is: a client's users take turns. Not kept.",
    )
    n: One | None = None

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options go with stream only")
        for token in self.logit_bias or {}:
            if not re.fullmatch("[0-9]{1,9}", token):
                raise ValueError("logit_bias is keyed by token ids")
        return self


class ChatRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: Positive | None = Field(
        None, description="The newer name of max_tokens; give one of the two."
    )
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = Field(None, max_length=8)
    service_tier: Literal["auto", "default"] | None = None
    store: Off = None
    parallel_tool_calls: bool | None = Field(None, description="Of no effect: there are no tools.")
    tool_choice: Literal["none", "auto"] | None = None
    tools: Empty = None
    functions: Empty = None
    function_call: Literal["none", "auto"] | None = None
    metadata: Empty = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are one thing; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


class CompletionRequest(Sampling):
    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1)]
    ) = Field(description="One text as it stands, without a chat template, or one list of ids.")
    max_tokens: Positive | None = Field(None, description="16 by default.")
    logprobs: Alternatives | None = None
    best_of: One | None = None
    echo: Off = None
    suffix: Unsupported = None
