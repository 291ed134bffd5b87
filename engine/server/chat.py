"""`POST /v1/chat/completions`."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.events import Finished, TextDelta, ToolCall, ToolCallDelta
from engine.generation import Generation
from engine.server import tools
from engine.server.answers import ChatCompletion
from engine.server.documents import answered
from engine.server.form import CompletionsForm
from engine.server.limits import client_of
from engine.server.options import chat_options, several, template_variables
from engine.server.schemas import ChatRequest
from engine.server.service import Service
from engine.server.streaming import EventStream, Json, Piece, WholeAnswer, head
from engine.server.tokens import TokenTexts
from engine.server.usage import FINISH

THOUGHT = "reasoning_content"
"""What a model thought before its answer; DeepSeek's name, which most servers and clients took."""


class ChatForm(CompletionsForm):
    """An answer as chat completions tell it; see `streaming.Form`."""

    def __init__(self, asked: ChatRequest, tokens: TokenTexts, base: Json, index: int = 0) -> None:
        super().__init__(asked, tokens, base, index)
        self._called: set[int] = set()
        """The indices of calls of which the stream has told."""
        self._logprobs = bool(asked.logprobs)

    def first(self) -> Iterable[Json]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def piece(self, delta: Piece) -> Sequence[Json]:
        if isinstance(delta, ToolCallDelta):
            first = delta.index not in self._called
            self._called.add(delta.index)
            return [self._chunk({"tool_calls": [tools.delta(delta, first)]})]
        if isinstance(delta, ToolCall):
            return ()  # its pieces are told
        if delta.reasoning:
            return [self._chunk({THOUGHT: delta.reasoning}, self._logprobs_of([delta]))]
        if not delta.text and not self._logprobs:
            return ()
        return [self._chunk({"content": delta.text}, self._logprobs_of([delta]))]

    def last(self, finished: Finished) -> Iterable[Json]:
        yield self._chunk({}, reason=FINISH[finished.finish_reason])

    def whole(self, finished: Finished, deltas: list[TextDelta]) -> Json:
        calls = [tools.whole(call) for call in finished.tool_calls]
        message: Json = {"role": "assistant", "content": finished.answer, "refusal": None}
        if calls:
            message |= {"content": finished.answer or None, "tool_calls": calls}
        if finished.reasoning:
            message[THOUGHT] = finished.reasoning
        choice = {
            "index": self._index,
            "message": message,
            "logprobs": self._logprobs_of(deltas),
            "finish_reason": FINISH[finished.finish_reason],
        }
        return self._base | {"object": "chat.completion", "choices": [choice]}

    def _chunk(self, delta: Json, logprobs: Any = None, reason: str | None = None) -> Json:
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs}
        choice["finish_reason"] = reason
        return self._chunk_of(choice)

    def _logprobs_of(self, deltas: Iterable[TextDelta]) -> Json | None:
        if not self._logprobs:
            return None
        return {"content": self._tokens.told(deltas), "refusal": None}


def chat_router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=answered(ChatCompletion))
    async def chat_completions(asked: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        service.check_model(asked.model)
        options = chat_options(asked, service.options)
        told = template_variables(asked, service.template_variables)

        client = client_of(http.scope), asked.user
        count = asked.n or 1

        async def submit() -> AsyncIterator[Generation]:
            messages = await service.read_turns([message.turn for message in asked.messages])
            for own in several(options, count):
                yield await service.submit(messages, own, client, told, **asked.asking)

        base = head("chat.completion.chunk", service.settings.model, "chatcmpl")
        forms = [ChatForm(asked, service.tokens, base, index) for index in range(count)]
        respond = EventStream if asked.stream else WholeAnswer
        return respond(submit, forms, service.settings)

    return router
