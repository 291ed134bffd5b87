"""Who may talk to the server: the right Host, no stranger's Origin, the right key."""

import hashlib
import hmac
import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.server.errors import ApiError
from engine.server.settings import LOOPBACK_NAMES, Settings

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9_.-]+)(:(?P<port>[0-9]{1,5}))?")


_OTHER_HOST = (
    "the Host header names another host; sightline serve --allow-host NAME has the server go by "
    "that name, too"
)
_OTHER_ORIGIN = (
    "pages of other sites may not call this; sightline serve --cors-origin ORIGIN lets one in"
)


class SameSite:
    """Refuses requests that a browser sends on behalf of another site's page.

    A page may have its own name resolve to this machine (DNS rebinding): the Host header tells.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = LOOPBACK_NAMES | {name.lower() for name in settings.allowed_hosts}
        self._names |= {settings.host.lower()}
        # An address is nobody's name: no rebinding leads to it.
        self._addresses = not settings.loopback
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        refusal = None
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            refusal = ApiError(403, _OTHER_HOST, "host_not_allowed")
        elif len(origins) > 1 or (origins and not self._may_call(origins[0], hosts[0], scope)):
            refusal = ApiError(403, _OTHER_ORIGIN, "origin_not_allowed")
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None or not 0 < int(match["port"] or 1) < 2**16:
            return False
        name = match["name"].strip("[]").lower()
        if name in self._names:
            return True
        try:
            return self._addresses and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _may_call(self, origin: str, host: str, scope: Scope) -> bool:
        return origin in self._origins or origin.lower() == f"{scope['scheme']}://{host}".lower()


class KeyRequired:
    """Asks for the API key, except where `open_paths` says that nothing is told."""

    def __init__(self, app: ASGIApp, key: str, open_paths: frozenset[str]) -> None:
        self._app = app
        self._digest = _digest(key)
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or self._knows(scope):
            await self._app(scope, receive, send)
            return
        refusal = ApiError(
            401, "the API key is missing or wrong", "invalid_api_key", headers=_CHALLENGE
        )
        await refusal.response()(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = Headers(scope=scope).getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        # Of digests, so that neither the time nor the length tells anything about the key.
        same = hmac.compare_digest(_digest(key.strip()), self._digest)
        return same and scheme.lower() == "bearer"


_CHALLENGE = {"www-authenticate": "Bearer"}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
