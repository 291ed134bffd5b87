"""What a request may say. What `engine.server.fields` does not know either is refused, with a 400
that names it.

A parameter of OpenAI's that this server cannot honour may be given with the one value that
changes nothing, which is often null: clients send such values by default.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from engine.server.formats import NamedSchema, ObjectFormat, TextFormat
from engine.server.parts import Part, as_turn_parts
from engine.server.sampling import Conversing, Effort, Sampling
from engine.server.tools import AllowedTools, Called, Choice, Tools, asking
from engine.server.turns import Turn
from engine.server.values import (
    MOST_ANSWERS,
    Alternatives,
    Answers,
    Empty,
    Few,
    Ignored,
    MaxTokens,
    Strict,
    TokenId,
    Unsupported,
)
from engine.tools.tool import MOST_CALLS


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description='"developer" is another word for "system".'
    )
    tool_calls: Annotated[list[Called], Field(fail_fast=True), Few] | None = Field(
        None, description="What an answer called."
    )
    content: Annotated[str | Annotated[list[Part], Field(fail_fast=True)] | None, Few] = Field(
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
    def turn(self) -> Turn:
        """What it says, for the engine."""
        return Turn(
            "system" if self.role == "developer" else self.role,
            as_turn_parts(self.content),
            reasoning=self.reasoning_content or self.reasoning,
            tool_calls=tuple(call.model_dump() for call in self.tool_calls or ()),
            tool_call_id=self.tool_call_id,
            name=self.name,
        )


_ABSENT: Any = object()
"""In place of a content that is not there: it may be null, or missing beside calls alone."""

MAY_SAY_NOTHING = ("assistant", "tool")
"""The roles of messages whose content may be null, or no part."""


class StreamOptions(Strict):
    include_usage: bool | None = Field(
        None, description="Send one more chunk, with no choices and the usage, before [DONE]."
    )
    include_obfuscation: Ignored = None


class SchemaFormat(Strict):
    """An answer that is JSON by a schema, unless it is cut off."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Completions(Sampling):
    """What OpenAI's two older protocols share."""

    stream_options: StreamOptions | None = None
    n: Answers | None = Field(None, description="How many answers; with a seed, each has its own.")


class ChatRequest(Completions, Conversing):
    messages: Annotated[list[ChatMessage], Few] = Field(min_length=1, fail_fast=True)
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
        None, description=f"False: an answer ends behind its first call; else behind {MOST_CALLS}."
    )
    functions: Empty = None
    function_call: Literal["none", "auto"] | None = None
    reasoning_effort: Effort | None = Field(
        None, description='"none": no thought. Any other: a thought, where the model has a switch.'
    )

    @property
    def effort(self) -> Effort | None:
        return self.reasoning_effort

    @property
    def asking(self) -> dict[str, Any]:
        """What there is to say of tools, by the names of `engine.Request`."""
        return asking(self.tools or (), self.tool_choice, self.parallel_tool_calls is not False)

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if self.enable_thinking and self.reasoning_effort == "none":
            raise ValueError("enable_thinking says the opposite of reasoning_effort")
        if isinstance(self.tool_choice, AllowedTools):
            known = {tool.function.name for tool in self.tools or ()}
            missing = [name for name in self.tool_choice.names if name not in known]
            if missing:
                raise ValueError(f"tool_choice allows a tool that there is not: {missing[0]!r:.80}")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Completions):
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
