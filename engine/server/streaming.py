"""An answer on its way to the client, in pieces or whole; it ends when the client leaves."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from engine.events import Finished, Progress, TextDelta
from engine.generation import Generation
from engine.server.errors import ApiError, as_api_error, json_response
from engine.server.presence import COMMENT
from engine.server.settings import Settings
from vision_add_ons.errors import EngineClosed

Json = dict[str, Any]


class Form(Protocol):
    """How one kind of request wants its answer written."""

    def first(self) -> Iterable[Json]:
        """What goes before the first text of a stream."""

    def piece(self, delta: TextDelta) -> Json | None:
        """A token of a stream; None if there is nothing to tell of it."""

    def last(self, finished: Finished) -> Iterable[Json]:
        """What a stream ends with."""

    def whole(self, finished: Finished, deltas: list[TextDelta]) -> Json:
        """The answer in one piece."""


Submit = Callable[[], Awaitable[Generation]]
"""Reads what a request holds and queues it. Raises `ApiError`."""


class _AnswerResponse(Response):
    """What is done for a request ends as soon as its client is gone, or the server gives up."""

    def __init__(self, submit: Submit, form: Form, settings: Settings) -> None:
        super().__init__()
        self._submit, self.form = submit, form
        self.keep_alive_seconds = settings.keep_alive_seconds
        self._answer: Generation | None = None
        self.left = False

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
        """Cancel the answer, whose final event ends the work; without one, the work itself."""
        if self._answer is not None:
            self._answer.cancel()
        else:
            work.cancel()

    async def _work(self, scope: Scope, send: Send) -> None:
        try:
            self._answer = await self._submit()
            await self.deliver(self._answer, scope, send)
        except (ApiError, EngineClosed) as error:
            if not self.left:
                await self.fail(as_api_error(error), scope, send)

    async def deliver(self, answer: Generation, scope: Scope, send: Send) -> None:
        """Raises `ApiError` if the answer failed, `EngineClosed` if it can no more be told."""
        raise NotImplementedError

    async def fail(self, error: ApiError, scope: Scope, send: Send) -> None:
        await error.response()(scope, _nothing, send)


class WholeAnswer(_AnswerResponse):
    async def deliver(self, answer: Generation, scope: Scope, send: Send) -> None:
        deltas = []
        async for event in answer:
            if isinstance(event, TextDelta):
                deltas.append(event)
            elif isinstance(event, Finished):
                _check(event)
                response = json_response(self.form.whole(event, deltas))
                await response(scope, _nothing, send)


class EventStream(_AnswerResponse):
    """Server-sent events: a `data:` line for each token, comments for what is going on."""

    begun = False

    async def deliver(self, answer: Generation, scope: Scope, send: Send) -> None:
        scope.setdefault("extensions", {})[COMMENT] = _STILL_HERE.encode()
        await send(_START)
        self.begun = True
        await self._write(send, ": queued\n\n")
        keeping = asyncio.ensure_future(self._keep_alive(send))
        try:
            await self._tell(answer, send)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _tell(self, answer: Generation, send: Send) -> None:
        form, told = self.form, False
        async for event in answer:
            if isinstance(event, TextDelta):
                piece = form.piece(event)
                if piece is None:
                    continue
                start = [] if told else form.first()
                told = True
                await self._write(send, "".join(map(_data, (*start, piece))))
            elif isinstance(event, Progress):
                await self._write(send, f": prefill {event.processed}/{event.total}\n\n")
            else:
                _check(event)
                start = [] if told else form.first()
                chunks = "".join(map(_data, (*start, *form.last(event))))
                await self._write(send, chunks + "data: [DONE]\n\n", False)

    async def _keep_alive(self, send: Send) -> None:
        """Say so whenever nothing was written for a while; one timer, however many events."""
        while True:
            left = self._written + self.keep_alive_seconds - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._write(send, _STILL_HERE)

    async def _write(self, send: Send, data: str, more: bool = True) -> None:
        self._written = time.monotonic()
        await send({"type": "http.response.body", "body": data.encode(), "more_body": more})

    async def fail(self, error: ApiError, scope: Scope, send: Send) -> None:
        if self.begun:
            await self._write(send, _data(error.body), False)
        else:
            await super().fail(error, scope, send)


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


def _data(chunk: Json) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def _check(finished: Finished) -> None:
    """Raises `ApiError` for an answer that came to no good end."""
    if finished.error is not None:
        raise as_api_error(finished.error)
    if finished.finish_reason == "cancelled":  # not by the client, who would not read this
        raise ApiError(503, "the server is shutting down", "shutting_down")


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
