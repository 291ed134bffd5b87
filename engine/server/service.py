"""Requests on their way into the engine, and what is known of those under way."""

import asyncio
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from engine.engine import Engine
from engine.events import Finished
from engine.generation import Generation
from engine.options import GenerationOptions
from engine.prompts.messages import Message
from engine.request import Request
from engine.server.errors import ApiError, as_api_error
from engine.server.fetch import Fetcher
from engine.server.metrics import Metrics
from engine.server.pictures import PictureReader
from engine.server.settings import Settings
from engine.server.tokens import TokenTexts
from engine.server.turns import Shown, Turn
from vision_add_ons.errors import EngineClosed, PromptError, RequestError

REMEMBERED_ANSWERS = 256
"""Recent answers whose token ids are known when a client sends their text back."""

PREFILL_STEP = 512
"""Small steps: progress is told, and cancelling answered, after each of them."""

READERS = 2
"""Threads that decode pictures and build prompts; each may hold one decoded picture."""


class Service:
    """One engine behind a server. Its methods are for the event loop's thread."""

    def __init__(self, engine: Engine, settings: Settings, fetcher: Fetcher) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.tokens = TokenTexts(engine)
        self.options = settings.options or replace(
            engine.default_options, max_tokens=None, prefill_step_size=PREFILL_STEP
        )
        """What holds where a request says nothing."""
        self.started = int(time.time())
        self._pictures = PictureReader(settings, fetcher)
        self._readers = ThreadPoolExecutor(READERS, "sightline-request")
        # Each may wait for its grammar, for seconds: one for each request that there may be.
        places = settings.max_queue + engine.parallel
        self._compilers = ThreadPoolExecutor(places, "sightline-request-grammar")
        # Weak: an answer is under way for as long as somebody holds it.
        self._active: WeakSet[Generation] = WeakSet()
        self._stop = threading.Event()
        self._answers: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    @property
    def closing(self) -> bool:
        """Whether all answers are being ended."""
        return self._stop.is_set()

    def check_model(self, model: str | None) -> None:
        """Raises the 404 for a model that is not served, if requests have to name the one that is;
        they do not otherwise: many a client has a name of its own for whatever it finds."""
        if not self.settings.strict_model:
            return
        if model is None:
            raise ApiError(400, "'model' is missing", "missing_required_parameter", "model")
        self.find_model(model)

    def find_model(self, model: str) -> None:
        """Raises the 404 for a model that is not served."""
        if model != self.settings.model:
            message = f"the model {model[:200]!r} is not served here; see /v1/models"
            raise ApiError(404, message, "model_not_found", "model")

    async def text_of(self, prompt: str | list[int]) -> str:
        """A prompt that was taken, as a text."""
        if isinstance(prompt, str):
            return prompt
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.engine.detokenize, prompt)

    async def read_turns(self, turns: Sequence[Turn], field: str = "messages") -> list[Message]:
        """The engine's messages, their pictures read. Raises `ApiError`; `field` is what the
        request has them in."""
        wanted = [part for turn in turns for part in turn.parts if isinstance(part, Shown)]
        pictures = iter(await self._pictures.read(wanted, self._readers, field))
        read = []
        for turn in turns:
            parts = [p if isinstance(p, str) else next(pictures) for p in turn.parts]
            text = "".join(part for part in parts if isinstance(part, str))
            try:
                made = Message(
                    turn.role,
                    parts if text or not turn.tool_calls else [p for p in parts if p != ""],
                    reasoning=turn.reasoning,
                    tool_calls=tuple(turn.tool_calls),
                    tool_call_id=turn.tool_call_id,
                    name=turn.name,
                )
                if turn.role == "assistant":
                    known = self._answers.get(_known_by(text, made.tool_calls), ())
                    made = replace(made, tokens=known) if known else made
                read.append(made)
            except PromptError as error:
                raise as_api_error(error) from error
        return read

    @property
    def template_variables(self) -> frozenset[str]:
        """The names of what the chat template may be told beside messages."""
        try:
            return self.engine.template_variables
        except EngineClosed as error:
            raise as_api_error(error) from error

    async def submit(
        self,
        prompt: str | Sequence[Any],
        options: GenerationOptions,
        client: Hashable,
        template: Mapping[str, Any] | None = None,
        **tools: Any,
    ) -> Generation:
        """Queue a request; `template` are variables for the chat template, and `tools` are what
        `Request` is told of tools.

        Raises `ApiError` if it is wrong in itself.
        """
        loop = asyncio.get_running_loop()
        try:
            request = Request(
                prompt, options=options, client=client, template=template or {}, **tools
            )
        except RequestError as error:
            raise as_api_error(error) from error

        def on_finish(finished: Finished) -> None:
            # While the engine closes, the loop may be gone; then nobody asks any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._ended, finished)

        guided = options.schema is not None or bool(request.tools)
        threads = self._compilers if guided else self._readers
        try:
            submitted = threads.submit(
                self.engine.submit, request, on_finish=on_finish, cancel=self._stop
            )
            try:
                generation = await asyncio.wrap_future(submitted)
            except asyncio.CancelledError:
                submitted.add_done_callback(_cancel)  # its thread goes on, and may yet queue it
                raise
        except Exception as error:
            raise as_api_error(error) from error
        self._active.add(generation)
        if self.closing:
            generation.cancel()
        return generation

    def cancel_all(self) -> None:
        """End every answer after the token at work, and those yet to come."""
        self._stop.set()
        for generation in list(self._active):
            generation.cancel()

    def close(self) -> None:
        """Let go of the threads; the engine stays open."""
        self.cancel_all()
        for threads in (self._readers, self._compilers):
            threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, finished: Finished) -> None:
        self.metrics.ended(finished)
        calls = [call.as_dictionary for call in finished.tool_calls]
        if (finished.answer or calls) and finished.answer_tokens:
            known = _known_by(finished.answer, calls)
            self._answers[known] = finished.answer_tokens
            self._answers.move_to_end(known)
            while len(self._answers) > REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)


def _cancel(submitted: Future[Generation]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _known_by(text: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """What an answer is found by when a client sends it back."""
    if not calls:
        return text
    functions = [call["function"] for call in calls]
    return f"{text}\0{json.dumps(functions, sort_keys=True)}"
