"""What a request to `/v1/responses` may say; see `engine.server.schemas`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.server.formats import NamedSchema, ObjectFormat, TextFormat
from engine.server.responses.items import Item
from engine.server.responses.tools import (
    AllowedTools,
    Choice,
    FunctionTool,
    NamespaceTool,
    Tools,
    WebSearch,
    asking,
)
from engine.server.sampling import Conversing, Effort
from engine.server.values import Alternatives, Empty, Few, Ignored, Off, Strict, Unsupported
from engine.tools.tool import MOST_CALLS

LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"


class SchemaFormat(NamedSchema):
    """An answer that is JSON by a schema, unless it is cut off."""

    type: Literal["json_schema"]


class TextConfig(Strict):
    format: (
        Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: Ignored = None


Summary = Literal["auto", "concise", "detailed"]


class Reasoning(Strict):
    effort: Effort | None = Field(
        None, description='"none": no thought. Any other: a thought, where the model has a switch.'
    )
    summary: Summary | None = Field(
        None, description="Tell the thought as its summary; it is the whole thought."
    )
    generate_summary: Summary | None = Field(None, description="Another name of summary.")
    context: Ignored = None
    mode: Literal["standard"] | None = None


class ResponseStreamOptions(Strict):
    include_obfuscation: Ignored = None
    include_usage: Ignored = None


Included = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


def _not_many(pairs: Any) -> Any:
    if isinstance(pairs, dict) and len(pairs) > 16:  # before each is complained about
        raise ValueError("has more than 16 pairs")
    return pairs


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    BeforeValidator(_not_many),
]


class ResponseRequest(Conversing):
    input: Annotated[str | Annotated[list[Item], Field(fail_fast=True)] | None, Few] = Field(
        None, description="A text, which a user says, or items. None only to go on."
    )
    instructions: str | None = Field(
        None, description="A system message before all others; not kept for the next response."
    )
    previous_response_id: str | None = Field(
        None, max_length=128, description="The response that this one goes on from."
    )
    store: bool | None = Field(
        None, description="False: it is not kept, and no other can go on from it."
    )
    metadata: Metadata | None = Field(None, description="Told again with the response.")
    include: Annotated[list[Included], Field(max_length=32, fail_fast=True)] | None = Field(
        None, description="Encrypted reasoning and log-probabilities; the others are of no effect."
    )
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: Tools | None = Field(None, description="What the answer may call.")
    tool_choice: Choice | None = Field(
        None, description='"auto" by default. Enforced where the form of calls is known.'
    )
    parallel_tool_calls: bool | None = Field(
        None, description=f"False: an answer ends behind its first call; else behind {MOST_CALLS}."
    )
    max_tool_calls: Ignored = None
    top_logprobs: Alternatives | None = None
    truncation: Literal["disabled"] | None = None
    stream_options: ResponseStreamOptions | None = None
    background: Off = None
    conversation: Unsupported = None
    prompt: Unsupported = None
    context_management: Empty = None

    @property
    def effort(self) -> Effort | None:
        return self.reasoning.effort if self.reasoning else None

    @property
    def summarized(self) -> bool:
        """Whether thoughts are to be told as summaries."""
        asked = self.reasoning
        return asked is not None and bool(asked.summary or asked.generate_summary)

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return bool(self.top_logprobs) or self.includes(LOGPROBS)

    def includes(self, name: str) -> bool:
        return self.include is not None and name in self.include

    @property
    def offered(self) -> list[FunctionTool | NamespaceTool]:
        """The tools that there are."""
        return [tool for tool in self.tools or () if not isinstance(tool, WebSearch)]

    @property
    def asking(self) -> dict[str, Any]:
        """What there is to say of tools, by the names of `engine.Request`."""
        return asking(self.offered, self.tool_choice, self.parallel_tool_calls is not False)

    @property
    def must_call(self) -> bool:
        """Whether a call is enforced, so that what begins as one is one."""
        choice = self.tool_choice
        if isinstance(choice, AllowedTools):
            return choice.mode == "required"
        return choice == "required" or (choice is not None and not isinstance(choice, str))

    @model_validator(mode="after")
    def _check_response(self) -> "ResponseRequest":
        if self.enable_thinking and self.effort == "none":
            raise ValueError("enable_thinking says the opposite of reasoning.effort")
        if self.input in (None, []) and self.previous_response_id is None:
            raise ValueError("input must be a text or a list of at least one item")
        if isinstance(self.tool_choice, AllowedTools):
            known = {tool["name"] for tool in asking(self.offered, None, True).get("tools", ())}
            missing = [t.name for t in self.tool_choice.tools if t.name not in known]
            if missing:
                raise ValueError(f"tool_choice allows a tool that there is not: {missing[0]!r:.80}")
        return self
