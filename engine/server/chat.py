"""`POST /v1/chat/completions`."""

import secrets
import time
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.events import Finished, TextDelta
from engine.generation import Generation
from engine.server.answers import ChatCompletion
from engine.server.documents import answered
from engine.server.limits import client_of
from engine.server.options import chat_options
from engine.server.schemas import ChatRequest
from engine.server.service import Service
from engine.server.streaming import EventStream, Json, WholeAnswer
from engine.server.tokens import TokenTexts
from engine.server.usage import FINISH, usage


class ChatForm:
    """An answer as chat completions tell it; see `streaming.Form`."""

    def __init__(self, asked: ChatRequest, tokens: TokenTexts) -> None:
        self._tokens = tokens
        self._logprobs = bool(asked.logprobs)
        self._usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._base: Json = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": asked.model,
        }

    def first(self) -> Iterable[Json]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def piece(self, delta: TextDelta) -> Json | None:
        if not delta.text and not self._logprobs:
            return None
        return self._chunk({"content": delta.text}, self._logprobs_of([delta]))

    def last(self, finished: Finished) -> Iterable[Json]:
        yield self._chunk({}, reason=FINISH[finished.finish_reason])
        if self._usage:
            yield {**self._base, "choices": [], "usage": usage(finished)}

    def whole(self, finished: Finished, deltas: list[TextDelta]) -> Json:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": finished.answer, "refusal": None},
            "logprobs": self._logprobs_of(deltas),
            "finish_reason": FINISH[finished.finish_reason],
        }
        whole = {"object": "chat.completion", "choices": [choice], "usage": usage(finished)}
        return self._base | whole

    def _chunk(self, delta: Json, logprobs: Any = None, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._base, "choices": [choice]}
        return {**chunk, "usage": None} if self._usage else chunk

    def _logprobs_of(self, deltas: Iterable[TextDelta]) -> Json | None:
        if not self._logprobs:
            return None
        content = [
            self._entry(delta.token, delta.logprob)
            | {"top_logprobs": [self._entry(*top) for top in delta.top_logprobs]}
            for delta in deltas
            if delta.token is not None and delta.logprob is not None
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> Json:
        text, data = self._tokens(token)
        return {"token": text, "logprob": logprob, "bytes": data}


def chat_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=answered(ChatCompletion))
    async def chat_completions(asked: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        service.check_model(asked.model)
        options = chat_options(asked, service.options)

        async def submit() -> Generation:
            messages = await service.read_messages(asked.messages)
            return await service.submit(messages, options, (client_of(http.scope), asked.user))

        respond = EventStream if asked.stream else WholeAnswer
        return respond(submit, ChatForm(asked, service.tokens), service.settings)

    return router
