"""A response as it is told: its events with their numbers, and its body; see `streaming.Form`."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from starlette.types import Scope, Send

from engine.events import Finished, TextDelta
from engine.generation import Generation
from engine.options import GenerationOptions
from engine.server.errors import ApiError, json_response
from engine.server.responses.schemas import SEALED, ResponseRequest
from engine.server.responses.tools import namespaces
from engine.server.responses.writing import Writer
from engine.server.streaming import (
    EventStream,
    Json,
    Piece,
    WholeAnswer,
    check_end,
    head,
    nothing,
)
from engine.server.tokens import TokenTexts
from engine.server.usage import usage

Keep = Callable[[Json, Finished], bool]
"""Keeps a response for those that go on from it; whether it could."""


class ResponseForm:
    """One response."""

    def __init__(
        self,
        asked: ResponseRequest,
        options: GenerationOptions,
        model: str,
        tokens: TokenTexts,
        keep: Keep | None,
    ) -> None:
        self._body = _head(asked, options, model, keep is not None)
        self._keep = keep
        self._writer = Writer(
            tokens,
            logprobs=asked.logprobs,
            summarized=asked.summarized,
            seals=asked.includes(SEALED),
            must_call=asked.must_call,
            namespaces=namespaces(asked.offered),
        )
        self._finished: Finished | None = None
        self._number = -1

    def start(self) -> Iterable[Json]:
        return [self._of_response("created"), self._of_response("in_progress")]

    def still_here(self) -> Json:
        """An event that says nothing new, for clients that take silence for an end."""
        return self._of_response("in_progress")

    def first(self) -> Iterable[Json]:
        return ()

    def piece(self, delta: Piece) -> Sequence[Json]:
        return [self._numbered(event) for event in self._writer.tell(delta)]

    def last(self, finished: Finished) -> Iterable[Json]:
        self._finished = finished
        cut = finished.finish_reason == "length"
        return [self._numbered(event) for event in self._writer.end(cut)]

    def total(self, usage: Json) -> Iterable[Json]:
        body = self.ended(usage)
        return [self._numbered({"type": f"response.{body['status']}", "response": body})]

    def whole(self, finished: Finished, deltas: list[TextDelta]) -> Json:
        self.last(finished)
        return self.ended(usage([finished]))

    def ended(self, figures: Json) -> Json:
        """The body of a response that came to its end."""
        finished = self._finished
        assert finished is not None
        body = self._body | {"output": self._writer.items, "usage": _usage(figures)}
        cut = finished.finish_reason == "length"
        if cut or self._writer.broken:
            body["status"] = "incomplete"
            body["incomplete_details"] = {"reason": "max_output_tokens" if cut else None}
        else:
            body |= {"status": "completed", "completed_at": int(time.time())}
        if self._keep is not None:
            body["store"] = self._keep(body, finished)
        return body

    def failed(self, error: ApiError) -> Json:
        """What a stream ends with that fails."""
        code = "server_error" if error.status_code >= 500 else "invalid_prompt"
        about = {"code": code, "message": error.detail}
        body = self._body | {"status": "failed", "error": about, "output": self._writer.items}
        return self._numbered({"type": "response.failed", "response": body})

    def _of_response(self, what: str) -> Json:
        return self._numbered({"type": f"response.{what}", "response": self._body})

    def _numbered(self, event: Json) -> Json:
        self._number += 1
        return {**event, "sequence_number": self._number}


class WholeResponse(WholeAnswer):
    """A response in one piece."""

    async def deliver(self, answers: Sequence[Generation], scope: Scope, send: Send) -> None:
        (answer,), (form,) = answers, self.forms
        async for event in answer:
            if isinstance(event, Piece):
                form.piece(event)
            elif isinstance(event, Finished):
                check_end(event)
                await json_response(form.whole(event, []))(scope, nothing, send)


class ResponseStream(EventStream):
    """Its events, each with its name before it, and no line behind the last."""

    end = ""

    @staticmethod
    def line(chunk: Json) -> str:
        return f"event: {chunk['type']}\n{EventStream.line(chunk)}"

    @property
    def _form(self) -> ResponseForm:
        (form,) = self.forms
        assert isinstance(form, ResponseForm)
        return form

    def still_here(self) -> str:
        return self.line(self._form.still_here())

    async def comment(self, send: Send, text: str) -> None:
        # Some clients wait for events alone: a comment is no reason to leave one out.
        written = self._written
        await super().comment(send, text)
        self._written = written

    def failure(self, error: ApiError) -> Json:
        return self._form.failed(error)


def _head(asked: ResponseRequest, options: GenerationOptions, model: str, stored: bool) -> Json:
    """A response before its answer: what was asked, as OpenAI tells it again."""
    base = head("response", model, "resp")
    tools = [tool.model_dump(exclude=_UNTOLD) for tool in asked.offered]
    choice: Any = asked.tool_choice or "auto"
    text = asked.text.format if asked.text else None
    told: Json = {"type": "text"} if text is None else text.model_dump(by_alias=True)
    if told["type"] == "json_schema":
        told["schema"] = told["schema"] or {}
    return {
        "id": base["id"].replace("-", "_"),
        "object": "response",
        "created_at": base["created"],
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": options.max_tokens,
        "metadata": asked.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {
            "effort": asked.effort,
            "summary": asked.reasoning.summary if asked.reasoning else None,
        },
        "store": stored,
        "temperature": options.temperature,
        "text": {"format": told},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": tools,
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": options.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": asked.user,
    }


_UNTOLD: Any = {"output_schema": True, "defer_loading": True}
_UNTOLD["tools"] = {"__all__": dict(_UNTOLD)}


def _usage(figures: Json) -> Json:
    """`engine.server.usage`, by the names that responses have for it."""
    cached = figures["prompt_tokens_details"]["cached_tokens"]
    written = figures["prompt_tokens"] - cached
    thought = figures["completion_tokens_details"]["reasoning_tokens"]
    return {
        "input_tokens": figures["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": figures["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": figures["total_tokens"],
        "sightline": figures["sightline"],
    }
