"""`POST /v1/completions`."""

import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.events import Finished, TextDelta
from engine.server.answers import Completion
from engine.server.documents import answered
from engine.server.limits import client_of
from engine.server.options import completion_options
from engine.server.schemas import CompletionRequest
from engine.server.service import Service
from engine.server.streaming import EventStream, Json, WholeAnswer
from engine.server.tokens import TokenTexts
from engine.server.usage import FINISH, usage


class CompletionForm:
    """An answer as text completions tell it; see `streaming.Form`."""

    def __init__(self, asked: CompletionRequest, tokens: TokenTexts) -> None:
        self._tokens = tokens
        self._logprobs = asked.logprobs is not None
        self._usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._offset = 0
        self._begun, self._first = False, list[int]()
        self._base: Json = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
        }

    def first(self) -> Iterable[Json]:
        return ()

    def piece(self, delta: TextDelta) -> Json | None:
        delta = self._with_space(delta)
        if not delta.text and not self._logprobs:
            return None
        return self._chunk(delta.text, self._logprobs_of([delta]))

    def last(self, finished: Finished) -> Iterable[Json]:
        yield self._chunk("", reason=FINISH[finished.finish_reason])
        if self._usage:
            yield {**self._base, "choices": [], "usage": usage(finished)}

    def whole(self, finished: Finished, deltas: list[TextDelta]) -> Json:
        deltas = [self._with_space(delta) for delta in deltas]
        text = "".join(delta.text for delta in deltas)
        choice = self._choice(text, self._logprobs_of(deltas), FINISH[finished.finish_reason])
        return {**self._base, "choices": [choice], "usage": usage(finished)}

    def _with_space(self, delta: TextDelta) -> TextDelta:
        """The text's first piece with the space that it begins with.

        mlx-lm drops one, as is right for an answer; a continuation would run into its prompt.
        """
        if self._begun:
            return delta
        if delta.token is not None:
            self._first.append(delta.token)
        if not delta.text:
            return delta
        self._begun = True
        whole = self._tokens.joined(self._first)
        lost = _spaces(whole) > _spaces(delta.text)
        return replace(delta, text=" " * lost + delta.text)

    def _chunk(self, text: str, logprobs: Any = None, reason: str | None = None) -> Json:
        chunk = {**self._base, "choices": [self._choice(text, logprobs, reason)]}
        return {**chunk, "usage": None} if self._usage else chunk

    def _choice(self, text: str, logprobs: Any, reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs_of(self, deltas: Iterable[TextDelta]) -> Json | None:
        if not self._logprobs:
            return None
        told: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for delta in deltas:
            if delta.token is not None and delta.logprob is not None:
                told["tokens"].append(self._tokens(delta.token)[0])
                told["token_logprobs"].append(delta.logprob)
                # OpenAI tells the token that was drawn too, and of one text's tokens the likeliest.
                tops: dict[str, float] = {}
                for token, logprob in (*delta.top_logprobs, (delta.token, delta.logprob)):
                    tops.setdefault(self._tokens(token)[0], logprob)
                told["top_logprobs"].append(tops)
                told["text_offset"].append(self._offset)
            self._offset += len(delta.text)
        return told


def _spaces(text: str) -> int:
    """How many it begins with."""
    return len(text) - len(text.lstrip(" "))


def completion_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", responses=answered(Completion))
    async def completions(asked: CompletionRequest, http: Request) -> Response:
        """Go on with a text as it stands, without a chat template."""
        service.check_model(asked.model)
        options = completion_options(asked, service.options)
        prompt: Any = asked.prompt
        if isinstance(prompt, list) and isinstance(prompt[0], str):
            prompt = prompt[0]
        client = client_of(http.scope), asked.user
        respond = EventStream if asked.stream else WholeAnswer
        form = CompletionForm(asked, service.tokens)
        return respond(lambda: service.submit(prompt, options, client), form, service.settings)

    return router
