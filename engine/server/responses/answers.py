"""What a response looks like, for the server's own OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from engine.server.answers import (
    CompletionTokensDetails,
    SightlineUsage,
    TokenLogprob,
)

Status = Literal["completed", "incomplete"]


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(max_length=0)
    logprobs: list[TokenLogprob] = Field(description="None unless `include` asks for them.")


class MessageOutput(BaseModel):
    """What the answer says."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class ThoughtText(BaseModel):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningOutput(BaseModel):
    """What the model thought."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[ThoughtText] = Field(description="The thought, if a summary was asked for.")
    content: list[ThoughtText] = Field([], description="Else it is here.")
    encrypted_content: str | None = Field(None, description="The same, if `include` asks for it.")


class CallOutput(BaseModel):
    """A call of a tool, for the client to run."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str = Field(description="What its output is to be given with.")
    name: str
    namespace: str | None = Field(None, description="Which of the tools' namespaces it is from.")
    arguments: str = Field(description="A JSON object, written out.")


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] | None


class InputTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Those that needed no work, being in the prompt cache.")
    cache_write_tokens: int = Field(description="The others, which are in it from now on.")


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int
    sightline: SightlineUsage


class ResponseBody(BaseModel):
    """A response that came to its end. What was asked is told again."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    error: None
    incomplete_details: IncompleteDetails | None
    output: list[MessageOutput | ReasoningOutput | CallOutput]
    usage: ResponseUsage
    model: str
    previous_response_id: str | None
    store: bool = Field(description="Whether it is kept, so that others can go on from it.")
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, str | None]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]
