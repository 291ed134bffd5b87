"""Answers on their way to the client, in pieces or whole; they end when the client leaves."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from engine.events import Finished, Progress, TextDelta, ToolCall, ToolCallDelta
from engine.generation import Generation
from engine.server.errors import ApiError, as_api_error, json_response
from engine.server.presence import COMMENT
from engine.server.settings import Settings
from engine.server.usage import usage
from vision_add_ons.errors import EngineClosed

Json = dict[str, Any]

Result = TypeVar("Result")


def head(kind: str, model: str, prefix: str) -> Json:
    """What all chunks of one response begin with."""
    identity = f"{prefix}-{secrets.token_hex(12)}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model}


Piece = TextDelta | ToolCallDelta | ToolCall


class Form(Protocol):
    """How one kind of request wants an answer written; each of several has its own."""

    def start(self) -> Iterable[Json]:
        """What a stream begins with, before the prompt is read."""

    def first(self) -> Iterable[Json]:
        """What goes before the first text of a stream."""

    def piece(self, delta: Piece) -> Sequence[Json]:
        """What a stream tells of a token, of a piece of a call, or of a call that is whole."""

    def last(self, finished: Finished) -> Iterable[Json]:
        """What goes behind its last text."""

    def total(self, usage: Json) -> Iterable[Json]:
        """What a stream ends with, whose answers took so much."""

    def whole(self, finished: Finished, deltas: list[TextDelta]) -> Json:
        """The answer in one piece: a response's `choices` and all that surrounds them."""


Submit = Callable[[], AsyncIterator[Generation]]
"""Reads what a request holds and queues it, once for each answer. Raises `ApiError`."""


class _AnswerResponse(Response):
    """What is done for a request ends as soon as its client is gone, or the server gives up."""

    def __init__(
        self, submit: Submit, forms: Sequence[Form], settings: Settings, prompts: int = 1
    ) -> None:
        """`forms` has one for each answer, those to the first of the `prompts` first."""
        super().__init__()
        self._submit, self.forms, self.prompts = submit, forms, prompts
        self.keep_alive_seconds = settings.keep_alive_seconds
        self._answers: list[Generation] = []
        self._submitted = self.left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._work(scope, send))
        leaving = asyncio.ensure_future(_until_left(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self.left = not work.done()
            if self.left:
                self._end(work)
                with suppress(asyncio.CancelledError):
                    await work
            else:
                work.result()
        finally:
            self._end(work)
            leaving.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)

    def _end(self, work: asyncio.Future[None]) -> None:
        """Cancel the answers, whose final events end the work; before all are there, the work."""
        for answer in self._answers:
            answer.cancel()
        if not self._submitted:
            work.cancel()

    async def _work(self, scope: Scope, send: Send) -> None:
        try:
            async for answer in self._submit():
                self._answers.append(answer)
            self._submitted = True
            await self.deliver(self._answers, scope, send)
        except (ApiError, EngineClosed) as error:
            if not self.left:
                await self.fail(as_api_error(error), scope, send)

    async def deliver(self, answers: Sequence[Generation], scope: Scope, send: Send) -> None:
        """Raises `ApiError` if one of them failed, `EngineClosed` if it can no more be told."""
        raise NotImplementedError

    async def fail(self, error: ApiError, scope: Scope, send: Send) -> None:
        await error.response()(scope, nothing, send)


class WholeAnswer(_AnswerResponse):
    async def deliver(self, answers: Sequence[Generation], scope: Scope, send: Send) -> None:
        ends, wholes = [], []
        for answer, form in zip(answers, self.forms, strict=True):
            deltas = []
            async for event in answer:
                if isinstance(event, TextDelta):
                    deltas.append(event)
                elif isinstance(event, Finished):
                    check_end(event)
                    ends.append(event)
                    wholes.append(form.whole(event, deltas))
        choices = [choice for whole in wholes for choice in whole["choices"]]
        told = wholes[0] | {"choices": choices, "usage": usage(ends, self.prompts)}
        await json_response(told)(scope, nothing, send)


class EventStream(_AnswerResponse):
    """Server-sent events: a `data:` line for each token, comments for what is going on."""

    begun = False
    end = "data: [DONE]\n\n"
    """What stands behind all events."""
    _written = 0.0
    """When something was last written."""

    @staticmethod
    def line(chunk: Json) -> str:
        """An event, as it is written."""
        return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"

    async def deliver(self, answers: Sequence[Generation], scope: Scope, send: Send) -> None:
        scope.setdefault("extensions", {})[COMMENT] = _STILL_HERE.encode()
        await send(_START)
        self.begun = True
        start = "".join(map(self.line, self.forms[0].start()))
        await self._write(send, f"{start}: queued\n\n")
        keeping = asyncio.ensure_future(self._keep_alive(send))
        try:
            each = [self._tell(a, f, send) for a, f in zip(answers, self.forms, strict=True)]
            ends, rest = zip(*await _all(each), strict=True)
            total = map(self.line, self.forms[0].total(usage(ends, self.prompts)))
            await self._write(send, "".join((*rest, *total)) + self.end, False)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _tell(self, answer: Generation, form: Form, send: Send) -> tuple[Finished, str]:
        """How it ended, and what is still to be written."""
        told = False
        async for event in answer:
            if isinstance(event, Piece):
                piece = form.piece(event)
                if not piece:
                    continue
                start = [] if told else form.first()
                told = True
                await self._write(send, "".join(map(self.line, (*start, *piece))))
            elif isinstance(event, Progress):
                await self.comment(send, f"prefill {event.processed}/{event.total}")
            else:
                check_end(event)
                start = [] if told else form.first()
                chunks = "".join(map(self.line, (*start, *form.last(event))))
                if len(self.forms) == 1:
                    return event, chunks
                await self._write(send, chunks)
                return event, ""
        raise AssertionError("an answer has a final event")

    async def _keep_alive(self, send: Send) -> None:
        """Say so whenever nothing was written for a while; one timer, however many events."""
        while True:
            left = self._written + self.keep_alive_seconds - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._write(send, self.still_here())

    def still_here(self) -> str:
        """What is written where there is nothing to tell."""
        return _STILL_HERE

    async def comment(self, send: Send, text: str) -> None:
        """What proxies, and whoever looks at the stream, are told."""
        await self._write(send, f": {text}\n\n")

    async def _write(self, send: Send, data: str, more: bool = True) -> None:
        self._written = time.monotonic()
        await send({"type": "http.response.body", "body": data.encode(), "more_body": more})

    def failure(self, error: ApiError) -> Json:
        """What a stream that has begun ends with, where it fails."""
        return error.body

    async def fail(self, error: ApiError, scope: Scope, send: Send) -> None:
        if self.begun:
            await self._write(send, self.line(self.failure(error)), False)
        else:
            await super().fail(error, scope, send)


async def _all(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all of it returns; where one fails, the others end before that is told."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_STILL_HERE = ": still here\n\n"

_START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"x-content-type-options", b"nosniff"),
    ],
}


def check_end(finished: Finished) -> None:
    """Raises `ApiError` for an answer that came to no good end."""
    if finished.error is not None:
        raise as_api_error(finished.error)
    if finished.finish_reason == "cancelled":  # not by the client, who would not read this
        raise ApiError(503, "the server is shutting down", "shutting_down")


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def nothing() -> Message:
    return {"type": "http.disconnect"}
