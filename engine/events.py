"""What a generation tells while it runs: progress, text, and exactly one final event.

Every event has `text`, so that printing it for each event prints the answer and nothing else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "tool_calls", "length", "stop_string", "cancelled", "error"]
"""Why an answer ended: the model's end-of-text token, the same with calls of tools to be answered
(`Finished.tool_calls`), `max_tokens` or the context's end, a stop text, `Generation.cancel`, or an
error."""


@dataclass(frozen=True)
class Progress:
    """The prompt is being read: `processed` of `total` tokens, after `cached` from the cache."""

    processed: int
    total: int
    cached: int
    text: str = ""
    """Always empty."""


@dataclass(frozen=True)
class TextDelta:
    """One generated token, and the `text` that became ready with it (often empty, never cut
    within a character).

    `token` is None for text that was only held back. `logprob` and `top_logprobs` (token id,
    log-probability; likeliest first) are there when the options ask for them. What the model
    thinks before it answers comes as `reasoning`, and `text` is empty then; a token that ends a
    thought and begins the answer is followed by a delta more.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    reasoning: str = ""
    """Text of a thought that became ready."""


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a call that is being written: a piece of its arguments.

    What was told of a call that turns out to be none is void: no `ToolCall` of its index follows,
    and what the model wrote is among the text.
    """

    index: int
    """Which of the answer's calls, from 0."""
    id: str
    """The call's own, the same in all its pieces."""
    name: str
    """Which tool is called."""
    arguments: str
    """More of the arguments' JSON; all pieces together are `ToolCall.written`. The first may be
    empty."""
    text: str = ""
    """Always empty."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, whole."""

    index: int
    """Which of the answer's calls, from 0; without the indices of pieces that are void."""
    id: str
    """What the call's result is to be given with: the model's own, or nine letters and digits."""
    name: str
    """Which tool is called: one of those that the request has."""
    arguments: Mapping[str, Any]
    """What it is called with. The tool's schema was asked for, and may not be met, unless the call
    was enforced by `tool_choice`."""
    written: str
    """The arguments as JSON, to the letter as the model wrote it where it writes JSON."""
    text: str = ""
    """Always empty."""

    @property
    def as_dictionary(self) -> dict[str, Any]:
        """In the form of `Message.tool_calls`."""
        arguments = json.loads(json.dumps(dict(self.arguments)))
        function = {"name": self.name, "arguments": arguments}
        return {"type": "function", "id": self.id, "function": function}


@dataclass(frozen=True)
class Finished:
    """The last event. Times are in seconds, counted from `submit`."""

    finish_reason: FinishReason
    """Why it ended; with "error", `error` says more."""
    answer: str
    """The whole text of the answer: that of all events before this one."""
    tokens: tuple[int, ...]
    """The ids generated, thoughts among them, without the end-of-text token."""
    prompt_tokens: int
    """The whole prompt's, cached ones and the rows of pictures included."""
    cached_tokens: int
    """How many of the prompt's tokens needed no work, being in the prompt cache."""
    disk_tokens: int
    """Of those, how many were read from a file."""
    images_encoded: int
    """Pictures that went through the towers."""
    images_reused: int
    """Pictures whose rows were at hand from an earlier request; those in cached tokens count in
    neither."""
    queue_seconds: float
    """From `submit` to the start of work."""
    prefill_seconds: float
    """From the start of work to the first token: pictures, prompt, first sampling."""
    time_to_first_token: float | None
    """None if there was no token."""
    tokens_per_second: float
    """Of decoding: tokens after the first, by the time after the first."""
    seed: int
    """What to give `GenerationOptions.seed` to draw the same again."""
    drafted_tokens: int = 0
    """How many of the tokens had been guessed by a draft (see `engine.load`) before the model said
    the same: each spared a step of it."""
    stop_string: str | None = None
    """The stop text that ended the answer."""
    error: BaseException | None = None
    """What went wrong; `Generation.result` raises it."""
    reasoning: str = ""
    """What the model thought before it answered, as all events told it."""
    reasoning_tokens: int = 0
    """How many of the tokens that was."""
    answer_tokens: tuple[int, ...] = ()
    """Those of the tokens that are the text of the answer; none where it is in several pieces."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls in the answer, in their order."""
    broken_calls: tuple[str, ...] = ()
    """What began as a call and is none, or names no tool that there is: it stands in `answer`, too,
    as the model wrote it."""
    text: str = ""
    """Always empty: the answer's text came before."""

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated: the answer's, and those of its thoughts."""
        return len(self.tokens)


Event = Progress | TextDelta | ToolCallDelta | ToolCall | Finished
"""What iterating a `Generation` gives."""
