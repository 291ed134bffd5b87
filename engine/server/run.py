"""Running the application under uvicorn: sockets, slow clients, signals, and a tidy end."""

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import DEFAULT_MAX_INCOMPLETE_EVENT_SIZE, H11Protocol

from engine.engine import Engine
from engine.server.app import create_app
from engine.server.errors import ApiError
from engine.server.fetch import Fetcher
from engine.server.presence import Connection, Presence
from engine.server.settings import Settings
from vision_add_ons.errors import OptionError

LEAST_READ = 2**15
"""Bytes of its answer that a client must take within `send_seconds`."""

LAST_WORDS_SECONDS = 5
"""Between cancelling the answers under way and cutting the connections off."""


class Server(uvicorn.Server):
    """uvicorn's server, for one engine. Run it in a thread with `run`; `stop` ends it."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        listener: socket.socket,
        on_start: Callable[[], None] | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.app = create_app(engine, settings, fetcher)
        self._settings, self._listener, self._on_start = settings, listener, on_start
        super().__init__(
            uvicorn.Config(
                self.app,
                http=cast(Any, _protocol(settings)),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=cast(int, settings.idle_seconds),
                timeout_graceful_shutdown=round(settings.shutdown_seconds + LAST_WORDS_SECONDS),
            )
        )

    def stop(self) -> None:
        """Have it end as at SIGTERM; from any thread."""
        self.should_exit = True

    def serve_until_stopped(self) -> None:
        """Answer requests until a signal comes, or `stop` is called."""
        try:
            self.run(sockets=[self._listener])
        finally:
            self.app.state.service.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop, service = asyncio.get_running_loop(), self.app.state.service
        timer = loop.call_later(self._settings.shutdown_seconds, service.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; 0 takes a free port. Raises `OptionError`."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"cannot listen on {host!r:.80}, port {port}: {reason}") from error
    return bound


def serve(
    engine: Engine,
    settings: Settings,
    listener: socket.socket,
    on_start: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let answers end. Call it on the main thread."""
    server = Server(engine, settings, listener, on_start)
    # uvicorn raises the signal again when it is done, which would end the process before the
    # engine has written what it keeps.
    before = {s: signal.signal(s, _already_seen) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.serve_until_stopped()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _already_seen(number: int, frame: Any) -> None:
    pass


def _protocol(settings: Settings) -> type[H11Protocol]:
    """HTTP/1.1 by h11, for clients that may be slow or hostile."""

    class Guarded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _reader_timer: asyncio.TimerHandle | None = None
        _presence: Presence | None = None
        conn: Connection

        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.conn = Connection(h11.SERVER, DEFAULT_MAX_INCOMPLETE_EVENT_SIZE)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            if len(self.connections) >= settings.max_connections:
                transport.abort()
                return
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            if self.transport is None:
                return
            super().data_received(data)
            self._watch()

        def eof_received(self) -> bool:  # type: ignore[override]
            """A client that has sent all of its request may still wait for the answer."""
            whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
            waits = whole and self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)
            if waits and self._presence is None:
                self._presence = Presence(self.loop, self.transport, self.conn, self.scope)
            return waits  # False has the connection closed

        def handle_events(self) -> None:
            super().handle_events()
            if self.scope is not None:
                self.scope.setdefault("extensions", {})

        def connection_lost(self, exc: Exception | None) -> None:
            if self._presence is not None:
                self._presence.stop()
            for timer in (self._timer, self._reader_timer):
                if timer is not None:
                    timer.cancel()
            if self.transport is not None:
                super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_reading()

        def on_response_complete(self) -> None:
            presence, self._presence = self._presence, None
            super().on_response_complete()
            if presence is not None:
                presence.stop()
                if not self.eof_received():  # else it had sent another request behind that one
                    self.transport.close()
            self._expect_reading()

        def _expect_reading(self) -> None:
            if self._reader_timer is not None:
                self._reader_timer.cancel()
            if left := self.transport.get_write_buffer_size():
                self._reader_timer = self.loop.call_later(
                    settings.send_seconds, self._see_whether_read, left
                )

        def _see_whether_read(self, before: int) -> None:
            """Leave a client that reads next to nothing of what only waits for it."""
            self._reader_timer = None
            left = self.transport.get_write_buffer_size()
            only_waits = self.flow.write_paused or self.transport.is_closing()
            if only_waits and left > max(0, before - LEAST_READ):
                self.transport.abort()
            else:
                self._expect_reading()

        def _watch(self) -> None:
            """See to it that a request's head comes whole in time, however slowly it trickles.

            So does the rest of a body that nobody reads, its request being answered already.
            """
            waiting = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
            if waiting and self._timer is None:
                self._timer = self.loop.call_later(settings.header_seconds, self.transport.abort)
            elif not waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def send_400_response(self, msg: str) -> None:
            body = bytes(
                ApiError(400, "this is no valid HTTP request", "invalid_http").response().body
            )
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            try:
                head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:  # in the middle of another answer
                pass
            self.transport.close()

    return Guarded
