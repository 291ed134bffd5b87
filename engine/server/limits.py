"""How much may be asked at once: places in the queue, and bodies of a size and within a time."""

import asyncio
from collections import Counter
from collections.abc import Hashable
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.errors import ApiError
from engine.server.metrics import Metrics
from engine.server.settings import Settings

ANSWERING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})


class Limits:
    """A request takes its place before its body is read, so what waits stays few and small."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, at_once: int = 1
    ) -> None:
        """`at_once` are at work; `Settings.max_queue` may wait."""
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._places = settings.max_queue + at_once
        self._of_one = self._places - settings.max_queue // 4
        """The most places that one client has: no other one is shut out by it."""
        self._taken: Counter[Hashable] = Counter()
        self._held = 0
        """Bytes of all bodies whose requests have not ended."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may believe one and this server the other: where a request ends is unclear.
            await _TWO_LENGTHS.response()(scope, receive, send)
            return
        if int(headers.get("content-length", "0")) > self._settings.max_body_bytes:
            refusal = _too_large(f"{self._settings.max_body_bytes:,} bytes")
            await refusal.response()(scope, receive, send)
            return
        if scope["path"] not in ANSWERING or scope["method"] != "POST":
            await self._app(scope, receive, send)  # which reads no body
            return
        client = client_of(scope)
        if self._taken.total() >= self._places or self._taken[client] >= self._of_one:
            await _full().response()(scope, receive, send)
            return
        self._taken[client] += 1
        self._metrics.in_flight.inc()
        body = _Body(receive, self._settings)
        try:
            await self._app(scope, partial(self._read, body), send)
        finally:
            self._held -= body.read
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
            self._metrics.in_flight.dec()

    async def _read(self, body: "_Body") -> Message:
        """The next message of a request. Raises `ApiError` for a body that is too much."""
        before = body.read
        try:
            message = await body.next()
        finally:
            self._held += body.read - before
        if self._held > _BODIES_HELD * self._settings.max_body_bytes:
            raise _full()
        return message


class _Body:
    """A request's messages. `read` is how many bytes of its body have come."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive, self._max_bytes = receive, settings.max_body_bytes
        self._deadline = asyncio.get_running_loop().time() + settings.body_seconds
        self._whole, self._commas = False, 0
        self.read = 0

    async def next(self) -> Message:
        """Raises `ApiError` for a body that is too long, or too long in coming."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            why = "the request's body did not arrive in time"
            raise ApiError(408, why, "body_timeout", headers=_CLOSE) from None
        if message["type"] == "http.request":
            part = message.get("body", b"")
            self.read += len(part)
            self._commas += part.count(b",")
            self._whole = not message.get("more_body", False)
            if self.read > self._max_bytes:
                raise _too_large(f"{self._max_bytes:,} bytes")
            if self._commas > _MOST_COMMAS:
                raise _too_large(f"{_MOST_COMMAS:,} commas")
        return message


def client_of(scope: Scope) -> Hashable:
    """Who asks, as far as that can be told: a program at an address."""
    address = scope.get("client") or ("",)
    return address[0], Headers(scope=scope).get("user-agent", "")


_BODIES_HELD = 8
"""How many bodies of the largest size may be held at once, those of waiting requests included."""

_MOST_COMMAS = 2**20
"""What commas part in JSON costs far more than its bytes do, and reading it holds everybody up."""

_CLOSE = {"connection": "close"}


def _full() -> ApiError:
    headers = {"retry-after": "1"}
    return ApiError(429, "too many requests are waiting", "queue_full", headers=headers)


def _too_large(limit: str) -> ApiError:
    message = f"the request's body has more than {limit}"
    return ApiError(413, message, "body_too_large", headers=_CLOSE)


_TWO_LENGTHS = ApiError(
    400, "the body's length is told in two ways", "invalid_http", headers=_CLOSE
)


class Counted:
    """Counts responses by route and status. The route's name, never the path: those are endless."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in self._routes else "other"
        counted = False

        async def count(message: Message) -> None:
            nonlocal counted
            if not counted and message["type"] == "http.response.start":
                counted = True
                self._metrics.responded(route, message["status"])
            await send(message)

        await self._app(scope, receive, count)
