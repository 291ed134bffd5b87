"""`POST /v1/responses`, and `GET` and `DELETE` of those that are kept."""

from collections.abc import AsyncIterator, Hashable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.events import Finished
from engine.generation import Generation
from engine.prompts.messages import Message, answer_message
from engine.server.documents import answered, errors
from engine.server.errors import ApiError, json_response
from engine.server.limits import client_of
from engine.server.options import template_variables
from engine.server.responses.answers import DeletedResponse, ResponseBody
from engine.server.responses.form import ResponseForm, ResponseStream, WholeResponse
from engine.server.responses.memory import ResponseMemory
from engine.server.responses.options import response_options
from engine.server.responses.reading import one_system, turns_of
from engine.server.responses.schemas import ResponseRequest
from engine.server.service import Service
from engine.server.turns import Turn


def response_router(service: Service, kept: ResponseMemory) -> APIRouter:
    """`kept` is where responses are kept."""
    router = APIRouter()

    @router.post("/v1/responses", responses=answered(ResponseBody))
    async def responses(asked: ResponseRequest, http: Request) -> Response:
        """Answer a conversation, or go on with one that is kept."""
        service.check_model(asked.model)
        options = response_options(asked, service.options)
        told = template_variables(asked, service.template_variables)
        client = client_of(http.scope)
        before = _before(kept, asked.previous_response_id, client)
        turns = turns_of(asked.input, lambda identity: kept.item(identity, client))
        instructions = [Turn("system", [asked.instructions])] if asked.instructions else []
        conversation: list[Message] = []

        async def submit() -> AsyncIterator[Generation]:
            read = await service.read_turns([*instructions, *turns], "input")
            conversation.extend([*before, *read[len(instructions) :]])
            prompt = one_system([*read[: len(instructions)], *conversation])
            yield await service.submit(prompt, options, (client, asked.user), told, **asked.asking)

        def keep(body: dict[str, Any], finished: Finished) -> bool:
            return kept.keep(body, [*conversation, answer_message(finished)], client)

        model, keeping = service.settings.model, None if asked.store is False else keep
        form = ResponseForm(asked, options, model, service.tokens, keeping)
        respond = ResponseStream if asked.stream else WholeResponse
        return respond(submit, [form], service.settings)

    @router.get("/v1/responses/{identity}", response_model=ResponseBody, responses=errors(400, 404))
    async def kept_response(identity: str, http: Request, stream: bool = False) -> Response:
        """A response that is kept, as it was told."""
        if stream:
            raise ApiError(400, "what is kept is told in one piece", "unsupported_value", "stream")
        found = kept.find(identity, client_of(http.scope))
        if found is None:
            raise _unknown(identity)
        return json_response(found.told)

    @router.delete(
        "/v1/responses/{identity}", response_model=DeletedResponse, responses=errors(404)
    )
    async def delete_response(identity: str, http: Request) -> Response:
        """Keep it no longer; what went on from it stays."""
        if not kept.drop(identity, client_of(http.scope)):
            raise _unknown(identity)
        return json_response({"id": identity, "object": "response", "deleted": True})

    return router


def _before(kept: ResponseMemory, identity: str | None, client: Hashable) -> tuple[Message, ...]:
    """The conversation up to a response. Raises `ApiError` if that is not kept."""
    if identity is None:
        return ()
    found = kept.find(identity, client)
    if found is None:
        field = "previous_response_id"
        message = (
            f"{field}: there is no response {identity!r:.140} here; the latest ones are kept, each "
            "for the client that asked for it, and none with store: false. Send all of the input"
        )
        raise ApiError(400, message, "previous_response_not_found", field)
    return found.messages


def _unknown(identity: str) -> ApiError:
    shown = identity[:128].encode(errors="replace").decode()
    return ApiError(404, f"there is no response {shown!r} here", "response_not_found")
