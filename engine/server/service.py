"""Requests on their way into the engine, and what is known of those under way."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakSet

from engine.engine import Engine
from engine.events import Finished
from engine.messages import Message
from engine.options import GenerationOptions
from engine.request import Request
from engine.server.answer import Answer
from engine.server.errors import ApiError, as_api_error
from engine.server.fetch import Fetcher
from engine.server.metrics import Metrics
from engine.server.pictures import PictureReader
from engine.server.schemas import ChatMessage, ImagePart
from engine.server.settings import Settings
from engine.server.tokens import TokenTexts

REMEMBERED_ANSWERS = 256
"""Recent answers whose token ids are known when a client sends their text back."""

READERS = 2
"""Threads that decode pictures and build prompts; each may hold one decoded picture."""


class Service:
    """One engine behind a server. Its methods are for the event loop's thread."""

    def __init__(self, engine: Engine, settings: Settings, fetcher: Fetcher) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.tokens = TokenTexts(engine)
        self.started = int(time.time())
        self.closing = False
        self._pictures = PictureReader(settings, fetcher)
        self._readers = ThreadPoolExecutor(READERS, "sightline-request")
        # Weak: an answer is under way for as long as somebody holds it.
        self._active: WeakSet[Answer] = WeakSet()
        self._answers: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def check_model(self, model: str) -> None:
        """Raises the 404 for a model that is not served."""
        if model != self.settings.model:
            message = f"the model {model[:200]!r} is not served here; see /v1/models"
            raise ApiError(404, message, "model_not_found", "model")

    async def read_messages(self, messages: Sequence[ChatMessage]) -> list[Message]:
        """The engine's messages, their pictures read. Raises `ApiError`."""
        parts = [p for m in messages if not isinstance(m.content, str) for p in m.content]
        wanted = [part.image_url for part in parts if isinstance(part, ImagePart)]
        pictures = iter(await self._pictures.read(wanted, self._readers))
        read = []
        for message in messages:
            role = "system" if message.role == "developer" else message.role
            if isinstance(message.content, str):
                tokens = self._answers.get(message.content, ()) if role == "assistant" else ()
                read.append(Message(role, message.content, tokens=tokens))
                continue
            text = "".join(p.text for p in message.content if not isinstance(p, ImagePart))
            own = tuple(next(pictures) for p in message.content if isinstance(p, ImagePart))
            read.append(Message(role, text, own))
        return read

    async def submit(self, prompt: str | Sequence[Any], options: GenerationOptions) -> Answer:
        """Queue a request. Raises `ApiError` if it is wrong in itself."""
        loop, answer = asyncio.get_running_loop(), Answer()

        def on_finish(finished: Finished) -> None:
            # While the engine closes, the loop may be gone; then nobody asks any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._ended, finished)

        try:
            request = Request(prompt, options=options)
            answer.generation = await loop.run_in_executor(
                self._readers, self.engine.submit, request, on_finish, answer.tell
            )
        except Exception as error:
            raise as_api_error(error) from error
        self._active.add(answer)
        if self.closing:
            answer.cancel()
        return answer

    def cancel_all(self) -> None:
        """End every answer after the token at work, and those yet to come."""
        self.closing = True
        for answer in list(self._active):
            answer.cancel()

    def close(self) -> None:
        """Let go of the threads; the engine stays open."""
        self.cancel_all()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _ended(self, finished: Finished) -> None:
        self.metrics.ended(finished)
        if finished.answer and finished.tokens:
            self._answers[finished.answer] = finished.tokens
            self._answers.move_to_end(finished.answer)
            while len(self._answers) > REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)
