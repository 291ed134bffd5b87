"""An answer on its way to the client, in pieces or whole; it ends when the client leaves."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from engine.events import Finished, Progress, TextDelta
from engine.server.answer import Answer, Tick
from engine.server.errors import ApiError, as_api_error, json_response
from engine.server.settings import Settings

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


class _AnswerResponse(Response):
    """Cancels the answer as soon as the client is gone, or the server gives up."""

    def __init__(self, answer: Answer, form: Form, settings: Settings) -> None:
        super().__init__()
        self.answer, self.form, self.settings = answer, form, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.ensure_future(self._cancel_when_left(receive))
        try:
            await self.deliver(scope, send)
        finally:
            self.answer.cancel()
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def deliver(self, scope: Scope, send: Send) -> None:
        raise NotImplementedError

    async def _cancel_when_left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.answer.cancel()


class WholeAnswer(_AnswerResponse):
    async def deliver(self, scope: Scope, send: Send) -> None:
        deltas = []
        async for event in self.answer.events(self.settings.keep_alive_seconds):
            if isinstance(event, TextDelta):
                deltas.append(event)
            elif isinstance(event, Finished):
                error = _failure(event)
                response = (
                    json_response(self.form.whole(event, deltas))
                    if error is None
                    else error.response()
                )
                await response(scope, _nothing, send)


class EventStream(_AnswerResponse):
    """Server-sent events: a `data:` line for each token, comments for what is going on."""

    async def deliver(self, scope: Scope, send: Send) -> None:
        abort: Callable[[], None] | None = scope.get("state", {}).get("abort")
        seconds = self.settings.send_seconds

        async def write(data: str, more: bool = True) -> None:
            async with asyncio.timeout(seconds):
                await send({"type": "http.response.body", "body": data.encode(), "more_body": more})

        await send(_START)
        try:
            await self._tell(write)
        except TimeoutError:
            # A client that reads nothing: its answer ends, and so does its connection.
            if abort is not None:
                abort()

    async def _tell(self, write: Callable[..., Awaitable[None]]) -> None:
        form, begun = self.form, False
        await write(": queued\n\n")
        async for event in self.answer.events(self.settings.keep_alive_seconds):
            if isinstance(event, TextDelta):
                piece = form.piece(event)
                if piece is None:
                    continue
                if not begun:
                    begun = True
                    await write("".join(map(_data, form.first())))
                await write(_data(piece))
            elif isinstance(event, Progress):
                await write(f": prefill {event.processed}/{event.total}\n\n")
            elif isinstance(event, Tick):
                await write(": still here\n\n")
            else:
                error = _failure(event)
                if error is not None:
                    await write(_data(error.body), False)
                    continue
                start = [] if begun else form.first()
                chunks = "".join(map(_data, (*start, *form.last(event))))
                await write(chunks + "data: [DONE]\n\n", False)


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


def _failure(finished: Finished) -> ApiError | None:
    if finished.error is not None:
        return as_api_error(finished.error)
    if finished.finish_reason == "cancelled":  # not by the client, who would not read this
        return ApiError(503, "the server is shutting down", "shutting_down")
    return None


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
