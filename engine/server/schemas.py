"""What a request may say. What `engine.server.fields` does not know either is refused, with a 400
that names it.

A parameter of OpenAI's that this server cannot honour may be given with the one value that
changes nothing, which is often null: clients send such values by default.
"""

import re
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.options import LARGEST
from engine.prompts.variables import read_variables
from engine.server.fields import OTHER_NAMES, changes_nothing, describe_fields
from engine.server.tools import Called, Choice, Tools
from engine.server.values import (
    MOST_ANSWERS,
    MOST_BIASES,
    Alternatives,
    Answers,
    Bias,
    Count,
    CountOrAll,
    Empty,
    Ignored,
    MaxTokens,
    Positive,
    Seed,
    StopText,
    Strict,
    TokenId,
    Unsupported,
    Whole,
    not_many,
    within,
)
from vision_add_ons.errors import PromptError

PART_TYPES = ("text", "input_text", "output_text", "image_url", "input_image")
FORMATS = {
    "response_format": ("text", "json_object", "json_schema"),
    "tool_choice": ("NamedTool",),
}
"""Fields that are one of several objects, and the types that these name."""


class _Part(Strict):
    cache_control: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class TextPart(_Part):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: Ignored = None


Detail = Annotated[
    Literal["auto", "high", "low", "original"] | None,
    Field(description='"low" shrinks the longer side to 512 pixels, else the picture stays.'),
]


class ImageURL(Strict):
    url: str = Field(
        min_length=1,
        description="A data URI, or base64. http(s) and file URLs only if the server allows them.",
    )
    detail: Detail = None


class ImagePart(_Part):
    type: Literal["image_url", "input_image"]
    image_url: ImageURL | Annotated[str, Field(min_length=1)]
    detail: Detail = None
    file_id: Unsupported = None

    @property
    def source(self) -> ImageURL:
        """The picture, however it is written."""
        if isinstance(self.image_url, str):
            return ImageURL(url=self.image_url, detail=self.detail)
        detail = self.image_url.detail or self.detail
        return self.image_url.model_copy(update={"detail": detail})


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description='"developer" is another word for "system".'
    )
    tool_calls: Annotated[list[Called], Field(fail_fast=True)] | None = Field(
        None, description="What an answer called."
    )
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = Field(
        default_factory=lambda: _ABSENT,
        validate_default=True,
        description="A text or parts; null or none in what may have said nothing: an answer, or "
        "what a tool returned. Not there only beside tool_calls.",
    )
    name: str | None = Field(
        None, max_length=256, description="Who speaks, for chat templates that tell."
    )
    cache_control: Ignored = None
    provider_specific_fields: Ignored = None
    reasoning_content: str | None = Field(
        None, description="What an answer's model thought, for chat templates that go on from it."
    )
    reasoning: str | None = Field(None, description="Another name of reasoning_content.")
    # What a client sends back with an answer that it was given.
    refusal: Unsupported = None
    annotations: Empty = None
    parsed: Ignored = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_call_id: str | None = Field(
        None, max_length=128, description="Which call a tool's message answers."
    )

    @field_validator("content", mode="before")
    @classmethod
    def _is_there(cls, content: Any, about: ValidationInfo) -> Any:
        if content is not _ABSENT:
            return content
        if about.data.get("tool_calls"):
            return None
        raise PydanticCustomError("missing", "is missing")

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: Any, about: ValidationInfo) -> Any:
        if content in (None, []) and about.data.get("role") not in MAY_SAY_NOTHING:
            raise ValueError("must be a text or a list of at least one part")
        return content

    @property
    def parts(self) -> "list[TextPart | ImagePart]":
        """Its content in one form."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content or []


_ABSENT: Any = object()
"""In place of a content that is not there: it may be null, or missing beside calls alone."""

MAY_SAY_NOTHING = ("assistant", "tool")
"""The roles of messages whose content may be null, or no part."""


class StreamOptions(Strict):
    include_usage: bool | None = Field(
        None, description="Send one more chunk, with no choices and the usage, before [DONE]."
    )
    include_obfuscation: Ignored = None


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


def _other(name: str) -> Any:
    return Field(None, description=f"Another name of {OTHER_NAMES[name]}.")


@cache
def _names_of(name: str) -> tuple[str, ...]:
    return name, *(other for other, ours in OTHER_NAMES.items() if ours == name)


class Sampling(Strict):
    """What both ways of asking share. Defaults are the model's own, which /v1/models tells."""

    model_config = ConfigDict(json_schema_extra=describe_fields)

    model: str | None = Field(None, description="The id that /v1/models tells.")
    max_tokens: MaxTokens | None = Field(
        None, description="-1, the default of chats: as many as the context holds."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float | None = within("top_p")
    top_k: CountOrAll | None = Field(None, description="Beside OpenAI's; 0 or -1 for all.")
    min_p: float | None = within("min_p", description="Beside OpenAI's.")
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = within(
        "repetition_penalty", description="Beside OpenAI's; 1 changes nothing."
    )
    penalty_context: Positive | None = Field(
        None,
        description="Beside OpenAI's: the tokens before, prompt included, that penalties look at.",
    )
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(not_many)] | None = Field(
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
    n: Answers | None = Field(None, description="How many answers; with a seed, each has its own.")
    # What other servers call them.
    num_predict: MaxTokens | None = _other("num_predict")
    n_predict: MaxTokens | None = _other("n_predict")
    repeat_penalty: float | None = within(
        "repetition_penalty", description="Another name of repetition_penalty."
    )
    repetition_context_size: Positive | None = _other("repetition_context_size")
    repeat_last_n: Positive | None = _other("repeat_last_n")
    random_seed: Seed | None = _other("random_seed")
    num_ctx: Annotated[int, Field(ge=2, le=LARGEST), Whole] | None = Field(
        None, description="A cap on prompt and answer together, in tokens."
    )

    @classmethod
    def _may_be_there(cls, name: str, value: Any) -> bool:
        return changes_nothing(name, value)

    def asked(self, name: str) -> Any:
        """A parameter by its own name or another; None if it is not given."""
        given = (getattr(self, other, None) for other in _names_of(name))
        return next((value for value in given if value is not None), None)

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        for name in set(OTHER_NAMES.values()):
            given = [n for n in _names_of(name) if getattr(self, n, None) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are one thing; give one of them")
        for token in self.logit_bias or {}:
            if not re.fullmatch("[0-9]{1,9}", token):
                raise ValueError("logit_bias is keyed by token ids")
        return self


def _variables(given: dict[str, Any]) -> dict[str, Any]:
    try:
        return read_variables(given)
    except PromptError as error:
        raise ValueError(str(error)) from error


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: MaxTokens | None = Field(
        None, description="The newer name of max_tokens; give one of the two."
    )
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = Field(None, max_length=8)
    tools: Tools | None = Field(None, description="What the answer may call.")
    tool_choice: Choice | None = Field(
        None,
        description='"auto" by default. Enforced where the form of calls is known.',
    )
    parallel_tool_calls: bool | None = Field(
        None, description="False: an answer ends behind its first call."
    )
    functions: Empty = None
    function_call: Literal["none", "auto"] | None = None
    reasoning_effort: Effort | None = Field(
        None, description='"none": no thought. Any other: a thought, where the model has a switch.'
    )
    enable_thinking: bool | None = Field(
        None, description="Beside OpenAI's: whether the model thinks first, where it can be told."
    )
    max_thinking_tokens: Count | None = Field(
        None, description="Beside OpenAI's: a thought is ended when it has so many tokens."
    )
    thinking_budget: Count | None = _other("thinking_budget")
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_variables)] | None = Field(
        None, description="Beside OpenAI's: variables for the chat template, of plain data."
    )

    @property
    def thinking(self) -> bool | None:
        """Whether it is to think, of what is not asked for by its effort."""
        return False if self.reasoning_effort == "none" else self.enable_thinking

    @property
    def asking(self) -> dict[str, Any]:
        """What there is to say of tools, by the names of `engine.Request`."""
        if not self.tools and self.tool_choice in (None, "auto", "none"):
            return {}
        choice = self.tool_choice
        if choice is not None and not isinstance(choice, str):
            choice = choice.model_dump()  # type: ignore[assignment]
        return {
            "tools": [tool.function.model_dump() for tool in self.tools or ()],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
        }

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if self.enable_thinking and self.reasoning_effort == "none":
            raise ValueError("enable_thinking says the opposite of reasoning_effort")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Sampling):
    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]
    ) = Field(
        description="A text as it stands, without a chat template, or a list of ids; or several."
    )
    max_tokens: MaxTokens | None = Field(
        None, description="16 by default; -1 for as many as the context holds."
    )
    logprobs: Alternatives | None = None
    best_of: Answers | None = Field(None, description="As n, or not at all.")
    echo: bool | None = Field(None, description="Have the answer begin with the prompt.")

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of must be n: this server makes no more answers than it sends")
        if len(self.prompts) * (self.n or 1) > MOST_ANSWERS:
            raise ValueError(f"prompt, n times, would have more than {MOST_ANSWERS} answers")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo does not go with logprobs: those of a prompt are not computed")
        return self
