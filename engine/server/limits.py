"""How much may be asked at once: places in the queue, and bodies of a size and within a time."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.errors import ApiError
from engine.server.metrics import Metrics
from engine.server.settings import Settings

ANSWERING = frozenset({"/v1/chat/completions", "/v1/completions"})


class Limits:
    """A request takes its place before its body is read, so what waits stays few and small."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._places = settings.max_queue + 1

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
            await self._too_large().response()(scope, receive, send)
            return
        receive = self._limited(receive)
        if scope["path"] not in ANSWERING or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if not self._places:
            full = ApiError(
                429, "too many requests are waiting", "queue_full", headers={"retry-after": "1"}
            )
            await full.response()(scope, receive, send)
            return
        self._places -= 1
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send)
        finally:
            self._places += 1
            self._metrics.in_flight.dec()

    def _too_large(self) -> ApiError:
        limit = self._settings.max_body_bytes
        message = f"the request's body has more than {limit:,} bytes"
        return ApiError(413, message, "body_too_large", headers={"connection": "close"})

    def _limited(self, receive: Receive) -> Receive:
        """Raises `ApiError` for a body that is too long, or too long in coming."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.body_seconds
        read, whole = 0, False

        async def limited() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    "the request's body did not arrive in time",
                    "body_timeout",
                    headers={"connection": "close"},
                ) from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if read > self._settings.max_body_bytes:
                    raise self._too_large()
            return message

        return limited


_TWO_LENGTHS = ApiError(
    400, "the body's length is told in two ways", "invalid_http", headers={"connection": "close"}
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
