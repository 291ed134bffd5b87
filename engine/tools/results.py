"""What came of an answer's calls, as messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.checks import reading
from engine.prompts.messages import Message, read_parts
from vision_add_ons.errors import PromptError


def read_results(history: Sequence[Message], results: Any) -> list[Message]:
    """The results of the calls that a history ends with, in the order of the calls.

    `results` are contents as `Chat.send` takes them, by the ids of the calls, or in their order.
    Raises `PromptError`, or `ImageError`.
    """
    calls = history[-1].tool_calls if history else ()
    if not calls:
        raise PromptError("there are no calls to give results of; the last answer has none")
    ids = [str(call.get("id")) for call in calls]
    with reading("the results", PromptError):
        if isinstance(results, Mapping):
            given = dict(results)
            missing = [id_ for id_ in ids if id_ not in given]
            unknown = [id_ for id_ in given if id_ not in ids]
            if missing or unknown:
                what = f"{missing[0]!r:.80} has none" if missing else f"{unknown[0]!r:.80} is none"
                raise PromptError(f"results go by the ids of the answer's calls: {what}")
            contents = [given[id_] for id_ in ids]
        elif isinstance(results, Sequence) and not isinstance(results, str | bytes | bytearray):
            contents = list(results)
            if len(contents) != len(ids):
                raise PromptError(
                    f"each call has one result: there are {len(ids)} calls and {len(contents)} "
                    "results"
                )
        else:
            raise PromptError(
                "results are a list in the order of the calls, or a dictionary by their ids, not "
                f"{type(results).__name__}"
            )
        return [
            Message(
                "tool",
                read_parts(content),
                tool_call_id=id_,
                name=str(call["function"]["name"]),
            )
            for id_, call, content in zip(ids, calls, contents, strict=True)
        ]
