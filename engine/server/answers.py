"""What an answer looks like, for the server's own OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, Field

Finish = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="Those that needed no work, being in the prompt cache.")


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = Field(description="Those of what the model thought.")
    accepted_prediction_tokens: int = Field(
        description="Those that a draft had guessed: each spared a step of the model."
    )


class SightlineUsage(BaseModel):
    """This server's own figures, beside OpenAI's. Times are in seconds."""

    images_encoded: int
    images_reused: int = Field(
        description="Pictures at hand from an earlier request; those in cached tokens not counted."
    )
    disk_tokens: int = Field(description="Of the cached tokens, those that were read from a file.")
    queue_seconds: float
    prefill_seconds: float
    time_to_first_token: float | None = Field(description="Null if there was no token.")
    tokens_per_second: float = Field(description="Of decoding, after the first token.")
    seed: int = Field(description="What to ask for to get the same answer again.")
    stop_string: str | None = Field(description="The stop text that ended the answer.")
    broken_calls: int = Field(
        description="What began as calls of tools and is none: it stands in the content, as it is."
    )


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    sightline: SightlineUsage


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="A JSON object, written out.")


class AnswerCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None = Field(description="Null where there are calls alone.")
    tool_calls: list[AnswerCall] = Field([], description="Not there without any.")
    refusal: None
    reasoning_content: str | None = Field(
        None, description="What the model thought before it; not there if it did not."
    )


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Architecture(BaseModel):
    input_modalities: list[Literal["text", "image"]] = Field(description="With image, it sees.")
    output_modalities: list[Literal["text"]]


class DefaultParameters(BaseModel):
    """What holds where a request says nothing."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


class Model(BaseModel):
    """OpenAI's fields, vLLM's `max_model_len`, and OpenRouter's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None = Field(
        description="The most tokens of prompt and answer together; null for no known limit."
    )
    max_model_len: int | None = Field(description="The same.")
    architecture: Architecture
    default_parameters: DefaultParameters


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail
