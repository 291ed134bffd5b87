"""The server's OpenAPI document."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from engine.server.answers import ErrorBody
from engine.server.settings import Settings

_EVERYWHERE = {
    401: "The API key is missing or wrong.",
    403: "The Host or Origin header names somebody else.",
    500: "Something went wrong in the server.",
}
_OF_ANSWERS = {
    400: "The request is wrong in itself; the error names the parameter.",
    404: "Another model is served, or there is no such response.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too many requests are waiting.",
    503: "The server is shutting down.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with, beside those that every route may."""
    texts = _EVERYWHERE | {status: _OF_ANSWERS[status] for status in statuses}
    return {s: {"model": ErrorBody, "description": text} for s, text in texts.items()}


def answered(whole: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that answers in one piece or as a stream."""
    stream: dict[str, Any] = {"text/event-stream": {}}  # OpenAPI 3.1 has no schema for its events
    about = "The answer; with `stream`, chunks of it as server-sent events."
    return {200: {"model": whole, "description": about, "content": stream}} | errors(*_OF_ANSWERS)


def describe(app: FastAPI, settings: Settings) -> None:
    """Make the document say what this very server takes."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = generate()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # FastAPI's own, which is a 400 here
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for name in ("ChatRequest", "CompletionRequest", "ResponseRequest"):
            if settings.strict_model:
                named = schemas[name]["properties"]["model"]
                del named["anyOf"]
                named |= {"type": "string", "enum": [settings.model]}
                schemas[name].setdefault("required", []).append("model")
        if settings.api_key is not None:
            document["components"]["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"}
            }
            document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
