"""Whether a client that has said all it has to say is still there.

A client may close its side of a connection once its request is whole, and wait for the answer. One
that has left for good looks the same, until something is written to it: then its system says that
there is nobody. So something is written that every client takes: comments where the answer is a
stream of events, and else the bytes with which every answer begins, one by one.
"""

import asyncio
import socket
from typing import Any, cast

import h11

BEGINNING = b"HTTP/1.1 "
FIRST_LOOK, LATER = 0.05, 3
"""Seconds from a byte to the look at what became of it, and how many times as long it takes from
one to the next: the nine bytes last for almost three minutes."""

COMMENT = "sightline.comment"
"""The extension of ASGI by which an answer names what may be written between two of its pieces."""


class Connection(h11.Connection):
    """h11's, that can write the beginning of an answer before there is one."""

    ahead = 0
    """How many bytes of it are written."""

    def begin(self) -> bytes:
        """The next byte of the beginning; none if it is all written."""
        byte = BEGINNING[self.ahead : self.ahead + 1]
        self.ahead += len(byte)
        return byte

    def send(self, event: h11.Event) -> Any:
        """The bytes of an event, less those of the beginning that are written already."""
        data = super().send(event)
        if data and self.ahead:
            data, self.ahead = data[self.ahead :], 0
        return data


class Presence:
    """Asks again and again whether a client is there, while its answer is made."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        conn: Connection,
        scope: Any,
    ) -> None:
        self._loop, self._transport, self._conn, self._scope = loop, transport, conn, scope
        self._wait = FIRST_LOOK
        self._timer: asyncio.TimerHandle | None = None
        self._ask()

    def stop(self) -> None:
        """The answer is whole, or the connection lost."""
        if self._timer is not None:
            self._timer.cancel()

    def _ask(self) -> None:
        if data := self._question():
            self._transport.write(data)
            self._timer = self._loop.call_later(self._wait, self._look)
            self._wait *= LATER

    def _look(self) -> None:
        connection = self._transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
        else:
            self._ask()

    def _question(self) -> bytes | None:
        if self._conn.our_state is h11.SEND_RESPONSE:
            return self._conn.begin()
        comment = self._scope["extensions"].get(COMMENT)
        if comment and self._conn.our_state is h11.SEND_BODY:
            return cast(bytes, self._conn.send(h11.Data(data=comment)))
        return None
