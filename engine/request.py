"""What is asked of an engine."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.checks import check_client, check_flag, check_kind
from engine.options import GenerationOptions
from engine.tools.tool import AUTO, read_choice, read_tools
from vision_add_ons.errors import PromptError


@dataclass(frozen=True)
class Request:
    """One request: `prompt` is a raw text, token ids, or messages.

    Messages are dictionaries of `role` and `content` (see `engine.prompts.messages.read_messages`).
    `images` belong to the last user message, or stand at the start of a raw text. Raises
    `PromptError` for a prompt of another kind, or another `RequestError`.
    """

    prompt: str | Sequence[Any]
    images: Sequence[Any] = ()
    options: GenerationOptions = field(default_factory=GenerationOptions)
    """How it is to be answered."""
    owner: object = None
    """The conversation that this request continues: any object, a text or a number.

    Its latest KV cache is its own, and makes room after what is nobody's; an object owns nothing
    any more once nobody holds it. See `Generation.owner`.
    """
    client: Hashable = None
    """Who asks: those who wait take turns, however many requests each of them has waiting."""
    tools: Sequence[Any] = ()
    """What the answer may call: `Tool`s, or dictionaries in OpenAI's form. Kept as a tuple of
    `Tool`s. They need messages: a prompt that is a text or token ids tells of tools by itself."""
    tool_choice: Any = AUTO
    """Whether it may ("auto"), must not ("none") or has to ("required") call some; or a tool's
    name, which it then has to call. Kept as a `ToolChoice`."""
    parallel_tool_calls: bool = True
    """Whether one answer may hold several calls, `engine.tools.tool.MOST_CALLS` at most, behind
    the last of which it ends; else it ends behind its first."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told beside messages: variables of its own by their names, plain
    data as JSON has it. It is kept as a copy; see `engine.prompts.variables`."""

    def __post_init__(self) -> None:
        whole = isinstance(self.prompt, bytes | bytearray | memoryview)
        if whole or not isinstance(self.prompt, Sequence):
            raise PromptError("a prompt is a text, a list of token ids or a list of messages")
        check_kind("options", self.options, GenerationOptions, "GenerationOptions")
        if self.client is not None:
            check_client(self.client)
        told = type(self.tools) is not tuple or self.tools or self.tool_choice is not AUTO
        if told or self.parallel_tool_calls is not True:
            check_flag("parallel_tool_calls", self.parallel_tool_calls)
            object.__setattr__(self, "tools", read_tools(self.tools))
            object.__setattr__(self, "tool_choice", read_choice(self.tool_choice, self.tools))
        if type(self.template) is not dict or self.template:
            from engine.prompts.variables import read_variables

            object.__setattr__(self, "template", read_variables(self.template))
