"""The page at `/`, as static files."""

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_paths() -> dict[str, tuple[bytes, str]]:
    """By its path, each file of the page and its type; read once, so nothing else can be asked."""
    folder = files("engine.server") / "page"
    if not folder.is_dir():
        return {}
    found = {}
    for file in folder.iterdir():
        kind = _TYPES.get("." + file.name.rpartition(".")[2])
        if file.is_file() and kind is not None:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = file.read_bytes(), kind
    return found


def page_router(paths: dict[str, tuple[bytes, str]]) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    def add(path: str, content: bytes, kind: str) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**_HEADERS, "etag": tag}

        @router.api_route(path, methods=["GET", "HEAD"])
        async def file(request: Request) -> Response:
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return Response(content, headers={**headers, "content-type": kind})

    for path, (content, kind) in paths.items():
        add(path, content, kind)
    return router
