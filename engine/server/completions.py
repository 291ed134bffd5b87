"""`POST /v1/completions`."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.events import Finished, TextDelta
from engine.generation import Generation
from engine.server.answers import Completion
from engine.server.documents import answered
from engine.server.form import CompletionsForm
from engine.server.limits import client_of
from engine.server.options import completion_options, several
from engine.server.schemas import CompletionRequest
from engine.server.service import Service
from engine.server.streaming import EventStream, Json, Piece, WholeAnswer, head
from engine.server.tokens import TokenTexts
from engine.server.usage import FINISH


class CompletionForm(CompletionsForm):
    """An answer as text completions tell it; see `streaming.Form`."""

    prompt = ""
    """What the text is to begin with."""

    def __init__(
        self, asked: CompletionRequest, tokens: TokenTexts, base: Json, index: int = 0
    ) -> None:
        super().__init__(asked, tokens, base, index)
        self._logprobs = asked.logprobs is not None
        self._offset = 0
        self._begun, self._first = False, list[int]()

    def first(self) -> Iterable[Json]:
        return [self._chunk(self.prompt)] if self.prompt else ()

    def piece(self, delta: Piece) -> Sequence[Json]:
        if not isinstance(delta, TextDelta):
            return ()
        delta = self._with_space(delta)
        if not delta.text and not self._logprobs:
            return ()
        return [self._chunk(delta.text, self._logprobs_of([delta]))]

    def last(self, finished: Finished) -> Iterable[Json]:
        yield self._chunk("", reason=FINISH[finished.finish_reason])

    def whole(self, finished: Finished, deltas: list[TextDelta]) -> Json:
        deltas = [self._with_space(delta) for delta in deltas]
        text = self.prompt + "".join(delta.text for delta in deltas)
        choice = self._choice(text, self._logprobs_of(deltas), FINISH[finished.finish_reason])
        return {**self._base, "choices": [choice]}

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
        return self._chunk_of(self._choice(text, logprobs, reason))

    def _choice(self, text: str, logprobs: Any, reason: str | None) -> Json:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}

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
        client = client_of(http.scope), asked.user
        prompts = [prompt for prompt in asked.prompts for _ in range(asked.n or 1)]

        base = head("text_completion", service.settings.model, "cmpl")
        forms = [CompletionForm(asked, service.tokens, base, i) for i in range(len(prompts))]

        async def submit() -> AsyncIterator[Generation]:
            each = several(options, len(prompts))
            for prompt, own, form in zip(prompts, each, forms, strict=True):
                yield await service.submit(prompt, own, client)
                if asked.echo:
                    form.prompt = await service.text_of(prompt)

        respond = EventStream if asked.stream else WholeAnswer
        return respond(submit, forms, service.settings, len(asked.prompts))

    return router
