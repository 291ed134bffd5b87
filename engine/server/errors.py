"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from engine.server.formats import FORMATS
from engine.server.parts import PART_TYPES
from vision_add_ons.errors import (
    ContextExceeded,
    EngineClosed,
    EngineFailed,
    ImageCountError,
    ImageError,
    NotEnoughMemory,
    NumericalError,
    OptionError,
    RequestError,
)

log = logging.getLogger("sightline")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_REASONS = {
    400: "the request's body is not valid JSON",
    404: "there is nothing at this address",
    405: "this address does not take that method",
}
_REASON_CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (ContextExceeded, "context_length_exceeded"),
    (NotEnoughMemory, "not_enough_memory"),
    (ImageError, "invalid_image"),
    (ImageCountError, "invalid_image"),
    (OptionError, "invalid_value"),
    (RequestError, "invalid_prompt"),
)


class ApiError(HTTPException):
    """A refusal with its HTTP status. The message goes to the client as it is."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param

    @property
    def body(self) -> dict[str, Any]:
        default = "server_error" if self.status_code >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.detail,
                "type": _TYPES.get(self.status_code, default),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        return json_response(self.body, self.status_code, self.headers)


PRIVATE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
"""What keeps an answer from caches, and from pages of other sites that would embed it."""


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    # Plain ASCII: a message may quote half a character from the request, which UTF-8 cannot hold.
    return Response(
        json.dumps(body),
        status,
        {**PRIVATE, **(headers or {})},
        "application/json",
    )


_FAILURE = ApiError(500, "something went wrong in the server", "internal_error")


def as_api_error(error: BaseException) -> ApiError:
    """What to tell a client about `error`; nothing but the status unless it is a refusal,
    or numbers that are none."""
    if isinstance(error, ApiError):
        return error
    for kind, code in _CODES:
        if isinstance(error, kind):
            return ApiError(400, str(error), code, _named(str(error)))
    if isinstance(error, EngineClosed) and not isinstance(error, EngineFailed):
        return ApiError(503, "the server is shutting down", "shutting_down")
    log.error("a request failed", exc_info=error)
    if isinstance(error, NumericalError):
        return ApiError(500, str(error), "numerical_error")
    return _FAILURE


def _named(message: str) -> str | None:
    """The option that an `OptionError` begins with."""
    name = re.match(r"[a-z]+(_[a-z]+)*\b(?= must| names)", message)
    return name.group() if name else None


def add_error_handlers(app: FastAPI) -> None:
    """Have every error of the app answered in OpenAI's form."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if not isinstance(error, ApiError):
            message = _REASONS.get(error.status_code, str(error.detail))
            code = _REASON_CODES.get(error.status_code)
            error = ApiError(error.status_code, message, code, headers=error.headers)
        return error.response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        kind = request.headers.get("content-type", "")
        if isinstance(error.body, bytes) and error.body and not _is_json(kind):
            told = f"it is {kind[:100]!r}" if kind else "there is none"
            message = f"the Content-Type header must be application/json; {told}"
            return ApiError(400, message, "invalid_content_type").response()
        return from_validation(error.errors()).response()

    async def wrong(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()  # what is found while the options are made

    async def failed(_: Request, error: Exception) -> Response:
        return _FAILURE.response()  # raised again after this, and then logged

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RequestError, wrong)
    app.add_exception_handler(Exception, failed)


def _is_json(content_type: str) -> bool:
    """As FastAPI decides it: what is none, it hands on unread. A page of another site can send such
    a request without asking."""
    main, _, kind = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and (kind == "json" or kind.endswith("+json"))


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The one complaint, of those that pydantic has, which says most."""
    unknown = [e for e in errors if e["type"] in ("unknown_field", "none_required")]
    # Of a union's branches, the one that got furthest is the one that was meant.
    error = unknown[0] if unknown else max(errors, key=lambda e: len(_path(e["loc"])))
    within = (error["ctx"]["name"],) if error["type"] == "unknown_field" else ()
    param = _path((*error["loc"], *within)) or None
    if unknown:
        neutral = error.get("ctx", {}).get("allowed")
        but = f" other than {json.dumps(neutral[0])}, which changes nothing" if neutral else ""
        message = f"this server does not support {param!r}{but}"
        return ApiError(400, message, "unsupported_parameter", param)
    if error["type"] == "json_invalid":
        return ApiError(400, "the request's body is not valid JSON", "invalid_json")
    if error["type"] == "missing":
        what = repr(param) if param else "the request's body"
        return ApiError(400, f"{what} is missing", "missing_required_parameter", param)
    reason = str(error["msg"]).removeprefix("Value error, ")
    if param is None and error["type"] == "value_error":
        # Our own, about several parameters: each begins with what it is about.
        return ApiError(400, f"{reason:.400}", "invalid_value", reason.split()[0])
    if param is None:
        return ApiError(400, "the request's body is no JSON object", "invalid_type")
    return ApiError(400, f"{param!r:.200}: {reason:.400}", "invalid_value", param)


_BRANCHES = ("body", "str", "constrained-str", "ImageURL")


_KINDS = ("list[", "literal[", "<")
"""What a branch's name may begin with; our own are "<kind>"."""


def _path(loc: Sequence[Any]) -> str:
    """`("body", "messages", 0, "content", "list[...]", 1)` as `messages[0].content[1]`."""
    path = ""
    before: Any = None
    for step in loc:
        # Between the names stand pydantic's own words for the branches of a union.
        branch = step in (PART_TYPES if isinstance(before, int) else FORMATS.get(before, ()))
        if isinstance(step, int):
            path += f"[{step}]" if path else ""
        elif not branch and step not in _BRANCHES and not step.startswith(_KINDS):
            path += f".{step:.100}" if path else f"{step:.100}"
        before = step
    return path
