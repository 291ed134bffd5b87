"""Fetching a picture from an address that a client names, and from nowhere else.

The name is resolved once, every address it has is checked, and the connection goes to a checked
address: a name that resolves differently a moment later gains nothing. No proxies, no cookies, no
credentials, no compression; a redirect is checked as if it had been asked for.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import h11

from engine.server.addresses import is_public
from engine.server.errors import ApiError

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[str, int, ssl.SSLContext | None, str | None], Awaitable[Connection]]

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_HEAD = 32 * 2**10
_MAX_URL = 8192


async def resolve(host: str, port: int) -> Sequence[str]:
    """The numeric addresses of a name. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


async def connect(
    address: str, port: int, context: ssl.SSLContext | None, name: str | None
) -> Connection:
    """A connection to a numeric address; with `context`, TLS for `name`. Raises OSError."""
    return await asyncio.open_connection(address, port, ssl=context, server_hostname=name)


@dataclass(frozen=True)
class Fetcher:
    """Fetches over http(s); `resolve` and `connect` are what it reaches the network with."""

    max_bytes: int
    seconds: float
    resolve: Resolve = resolve
    connect: Connect = connect

    async def fetch(self, url: str) -> bytes:
        """The body at `url`. Raises `ApiError`, and tells nothing about private addresses."""
        try:
            async with asyncio.timeout(self.seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    body, location = await self._get(_split(url))
                    if location is None:
                        return body
                    url = _joined(url, location)
        except TimeoutError:
            raise _refused(f"was not there within {self.seconds:g} seconds") from None
        except (OSError, h11.ProtocolError, asyncio.IncompleteReadError):
            raise _refused("cannot be fetched") from None
        raise _refused(f"is behind more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: SplitResult) -> tuple[bytes, str | None]:
        """One request: the body, or where to look instead."""
        host = url.hostname or ""
        port = url.port or (443 if url.scheme == "https" else 80)
        reader, writer = await self._open(host, port, url.scheme == "https")
        try:
            return await self._exchange(url, reader, writer)
        finally:
            # Not its tidy end, which a server could hold up.
            writer.transport.abort()

    async def _open(self, host: str, port: int, secure: bool) -> Connection:
        try:
            addresses = await self.resolve(host, port)
        except OSError:
            addresses = []  # told as a private one is: nobody learns which names there are
        if not addresses or not all(_is_public(address) for address in addresses):
            raise _refused("is not at a public address")
        context = await asyncio.to_thread(_tls) if secure else None
        failure: OSError = OSError()
        for address in addresses[:4]:
            try:
                return await self.connect(address, port, context, host if secure else None)
            except OSError as error:
                failure = error
        raise failure

    async def _exchange(
        self, url: SplitResult, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[bytes, str | None]:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        target = quote(url.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if url.query:
            target += "?" + quote(url.query, safe="/?%:@!$&'()*+,;=~-._[]")
        headers = [
            ("Host", url.netloc),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "sightline"),
            ("Connection", "close"),
        ]
        asked = h11.Request(method="GET", target=target, headers=headers)
        writer.write((http.send(asked) or b"") + (http.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(2**16))
            elif isinstance(event, h11.Response):
                location = self._check(event)
                if location is not None:
                    return b"", location
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self.max_bytes:
                    raise _refused(f"has more than {self.max_bytes:,} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body), None
            elif not isinstance(event, h11.InformationalResponse):
                raise _refused("cannot be fetched")

    def _check(self, head: h11.Response) -> str | None:
        """Where a redirect leads; None for a body that may be read."""
        fields = dict(head.headers)
        if head.status_code in _REDIRECTS and b"location" in fields:
            return fields[b"location"].decode("latin-1")
        if head.status_code != 200:
            raise _refused(f"was answered with status {head.status_code}")
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise _refused("came compressed, which was not asked for")
        length = fields.get(b"content-length")
        if length is not None and int(length) > self.max_bytes:
            raise _refused(f"has more than {self.max_bytes:,} bytes")
        return None


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _split(url: str) -> SplitResult:
    """The parts of a URL that may be fetched. Raises `ApiError`."""
    try:
        # What parsers read differently is read by nobody.
        if len(url) > _MAX_URL or re.search(r"[\x00-\x20\x7f\\]", url):
            raise ValueError
        parts = urlsplit(url)
        port = parts.port
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError
        if "@" in parts.netloc:
            raise ValueError
        # The name as it goes over the wire: in ASCII, without what looks like a dot or a letter.
        host = parts.hostname
        if ":" in host:
            host = f"[{ipaddress.IPv6Address(host)}]"
        elif not re.fullmatch(r"[a-z0-9_.-]{1,253}", host := host.encode("idna").decode().lower()):
            raise ValueError
        return parts._replace(netloc=host if port is None else f"{host}:{port}", fragment="")
    except ValueError:
        raise _refused("has no valid http(s) URL") from None


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise _refused("redirects to no valid URL") from None


def _is_public(address: str) -> bool:
    try:
        return is_public(address)
    except ValueError:
        return False


def _refused(why: str) -> ApiError:
    return ApiError(400, f"the picture {why}", "invalid_image_url")
