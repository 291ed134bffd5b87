"""Addresses as clients write them: without /v1, with a slash behind, and HEAD wherever GET is."""

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.server.limits import ANSWERING

_NAMED = ("/models/", "/responses/")


def _spellings(path: str) -> list[str]:
    short = path.removeprefix("/v1")
    return [short, f"{short}/", f"{path}/"]


OTHER_PATHS = {other: path for path in (*ANSWERING, "/v1/models") for other in _spellings(path)}
"""What else leads where."""


class Paths:
    """Has every request go to the one address that a route has.

    It stands before all that decides by an address, so that no other spelling gets past it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            path = OTHER_PATHS.get(path, path)
            if path.startswith(_NAMED):
                path = f"/v1{path}"
            # The server leaves the body of an answer to HEAD out, whatever is sent.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            if (path, method) != (scope["path"], scope["method"]):
                scope = {**scope, "path": path, "method": method}
        await self._app(scope, receive, send)
