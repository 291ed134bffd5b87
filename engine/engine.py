"""The engine that an application holds: load a model, ask it, close it."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engine.chat import Chat
from engine.checks import (
    check_callback,
    check_cancel,
    check_options,
    check_process,
    file_name,
    no_token_id,
    reading,
    token_id,
    token_ids,
    too_long,
)
from engine.events import Event, Finished
from engine.generation import Generation
from engine.options import GenerationOptions
from engine.prompts.text_encoder import Cancelled
from engine.request import Request
from engine.schema import Schema
from engine.worker import Worker
from vision_add_ons.errors import (
    AdapterError,
    ConversationFileError,
    EngineClosed,
    OptionError,
    PromptError,
    RequestError,
)

if TYPE_CHECKING:
    from engine.decoding.guide import Guide
    from engine.memory.memory import Memory
    from engine.prompts.builder import Prompt, PromptBuilder
    from engine.prompts.messages import Message
    from model_kit.kit import ModelKit
    from model_kit.report import LoadReport

log = logging.getLogger("sightline")


class Engine:
    """A loaded model that answers requests; made by `load`.

    Every method may be called from any thread. All work is done on one thread that the engine
    owns, `parallel` answers at a time in the order of their submission; requests of several clients
    (see `Request.client`) take turns. Use it as a context manager, or call `close`.
    """

    options_class = GenerationOptions
    """What `options` are, for whoever is handed an engine and imports none."""

    def __init__(self, worker: Worker, kit: "ModelKit", parallel: int = 1) -> None:
        from engine.decoding.channels import Marks
        from engine.decoding.guide import Guides
        from engine.prompts.builder import PromptBuilder

        self._worker = worker
        self._marks = Marks(kit.tokenizer)
        self._prompts: PromptBuilder | None = PromptBuilder(kit)
        self._guides: Guides | None = Guides(
            kit.tokenizer, kit.vocab_size, self._prompts.token_bytes
        )
        self._ends = self._guides.ends
        self._max_context = kit.max_context
        self._vocab_size = kit.vocab_size
        self._has_decoder = kit.text_model is not None
        self._kv_unit = kit.quantizable_kv_width
        self.parallel = parallel
        """How many answers are made at once."""
        self.report: LoadReport = kit.report
        """What was loaded, and what had to be assumed."""
        self.default_options = GenerationOptions(**cast(Any, kit.report.sampling))
        """How the checkpoint's generation_config.json wants answers made, for an app that asks its
        users for nothing. `GenerationOptions()` takes the likeliest token whatever the model."""
        self._finalizer = weakref.finalize(self, worker.close)

    @property
    def tool_form(self) -> str:
        """How the model is told of tools, and in which form it calls them, in one line.

        A chat template that knows none, or whose calls nothing reads, is helped by plain texts.
        Raises `EngineClosed`.
        """
        return self._builder().telling.about

    def chat(
        self,
        system: str | None = None,
        options: GenerationOptions | None = None,
        restore: str | os.PathLike[str] | None = None,
        tools: Sequence[Any] = (),
    ) -> Chat:
        """Start a conversation, or go on with the one that `Chat.save` wrote to `restore`.

        `options` are the defaults of its answers, `tools` what they may call (see `Request`); a
        file holds calls and results, and no tools. A restored conversation starts warm if its KV
        cache lies beside it and this model wrote it; else the cache's file is removed, with one
        warning. Raises `ConversationFileError`, `PromptError` for a `system` besides `restore` or
        with half a character, or `OptionError`.
        """
        self.check_process()
        if restore is None:
            return Chat(self, system, options, tools=tools)
        if system is not None:
            raise PromptError("a restored conversation has its own system message; leave yours out")
        from engine import conversation_file

        check_options(options)
        path = _path(restore)
        messages = conversation_file.read(path)
        known = self._worker.call(lambda memory: memory.restore(path), exclusive=False)
        known.add_done_callback(_log_failure)
        return Chat(self, options=options, messages=messages, tools=tools)

    def generate(
        self,
        prompt: str | Sequence[Any],
        images: Sequence[Any] = (),
        options: GenerationOptions | None = None,
    ) -> Generation:
        """Answer one request without a history. Iterate the result, or take its `result()`.

        A text is used as it stands; messages go through the chat template. Raises a subclass of
        `RequestError` if the request is wrong in itself.
        """
        check_options(options)
        return self.submit(Request(prompt, images, options or GenerationOptions()))

    def submit(
        self,
        request: Request,
        on_finish: Callable[[Finished], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Generation:
        """Queue a request and return at once.

        `on_finish` is called, usually on the engine's thread, before the final event is delivered;
        it must not wait for this generation. With `on_event`, every event, the final one too, goes
        to that function instead, on the engine's thread: it must be quick. What they raise is
        logged, and the answer goes on. Whoever sets `cancel` ends the answer as `Generation.cancel`
        does, also before there is one; only what waits for its turn goes on waiting for it. Raises
        a `RequestError` before anything is run, or `EngineClosed`; among them `ContextExceeded` for
        a text of more characters than `engine.prompts.text_encoder.MOST_TEXT`, which is 4,194,304,
        or more messages, or parts in all of them, than `MOST_PARTS` there, which is 16,384.
        """
        builder = self._builder()
        if not isinstance(request, Request):
            raise RequestError(f"submit takes a Request, not {type(request).__name__}")
        check_callback("on_finish", on_finish)
        check_callback("on_event", on_event)
        if cancel is not None:
            check_cancel(cancel)
        started = time.perf_counter()
        options = request.options
        self._check(options)
        schema: Any = options.schema
        if request.tools:
            from engine.tools.asking import schema_of

            schema = schema_of(request, builder)
        guide = None if schema is None else self._guide(schema)
        prompt, cancelled = builder.nothing, False
        try:
            prompt = builder.build(
                request.prompt,
                request.images,
                options.max_image_size,
                cancel,
                request.template,
                options.thinking,
                request.tools,
                options.context_limit(self._max_context),
            )
            self._check_prompt(prompt, options)
        except Cancelled:
            cancelled = True
        generation = Generation(
            prompt, options, request.owner, on_finish, started, on_event, cancel
        )
        generation.client, generation.guide = request.client, guide
        if self._marks.there or request.tools:
            self._think(generation, guide, request)
        generation.engine = self
        if cancelled:
            generation.cancel()
        self._worker.submit(generation)
        return generation

    def save(
        self, path: str | os.PathLike[str], messages: "Sequence[Message]", owner: object | None
    ) -> "Future[int]":
        """`Chat.save`, with the KV cache of the conversation of `owner` if that is not None.

        Raises `ConversationFileError`, or `PromptError` for what is no conversation.
        """
        from engine import conversation_file
        from engine.prompts.messages import read_messages

        self.check_process()
        file = _path(path)
        with reading("the messages", PromptError):
            given = list(messages)
        kept = conversation_file.whole(read_messages(given)) if given else []
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()  # it cannot be called off any more

        def save_words() -> None:
            self._worker.wait_for_end()  # what it still writes is older
            try:
                written = conversation_file.write(file, kept)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(written)

        try:
            queued = self._worker.call(
                lambda memory: memory.save(file, kept, owner, future), exclusive=False, owner=owner
            )
        except EngineClosed:
            save_words()
        else:
            queued.add_done_callback(lambda done: save_words() if done.exception() else None)
        return future

    def load_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Answer with a low-rank adapter from now on, in place of one that there may be.

        `folder` is what mlx-lm's training writes. Waits for the requests before it. Conversations
        go on; what was computed without the adapter is not reused with it, nor the other way
        round. Raises `AdapterError` if it does not fit the decoder, or `OptionError` if the folder
        of KV caches cannot be used any more; then everything is as it was.
        """
        self._use_adapter(folder)

    def unload_adapter(self) -> None:
        """Answer without an adapter from now on; waits for the requests before it."""
        self._use_adapter(None)

    def _use_adapter(self, folder: str | os.PathLike[str] | None) -> None:
        worker = self._worker
        name = None if folder is None else file_name(folder, "the adapter", AdapterError)
        if threading.current_thread() is worker.thread:
            raise RequestError("an adapter cannot be changed from the engine's own thread")

        def change(memory: "Memory") -> None:
            kit = worker.kit
            assert kit is not None
            before = kit.adapter
            kit.use_adapter(name)
            try:
                memory.serve(kit.fingerprint)
            except BaseException:
                kit.put_adapter(before)
                raise

        worker.call(change).result()

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, with no special tokens added.

        Raises `PromptError` for what is no text, or `ContextExceeded` for one that is longer than a
        prompt may be.
        """
        return self._builder().encode(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones written out; U+FFFD where characters are cut.

        Some tokenizers drop the space that a text begins with. Raises `RequestError` for what is
        no token id.
        """
        return self._builder().decode(token_ids(tokens, self._vocab_size))

    def token_bytes(self, token: int) -> bytes | None:
        """What a token stands for, which may be a part of a character; None if that is not known.

        Raises `RequestError` for what is no token id.
        """
        return self._builder().token_bytes(token_id(token, self._vocab_size))

    @property
    def template_variables(self) -> frozenset[str]:
        """The names of what the chat template may be told by `Request.template`, as far as they
        can be seen in it; none of a model without one."""
        return self._builder().variables

    def cache_stats(self) -> dict[str, int]:
        """What is kept for later requests: conversations, images, bytes of each, the budget."""
        from engine.memory.memory import stats

        self.check_process()
        return stats(self._worker.memory)

    def close(self) -> None:
        """Cancel what runs, end what waits, free the model. Calling it again does nothing."""
        # They hold the add-on's weights, which are to go with the others.
        self._prompts = self._guides = None
        self._finalizer()

    def check_process(self) -> None:
        """Raises `ForkedProcess` in a process that was forked from the one that loaded the model.

        There, all of an engine's methods do, except `close`, which does nothing.
        """
        check_process(self._worker.process)

    def _builder(self) -> "PromptBuilder":
        self.check_process()
        if self._prompts is None:
            raise EngineClosed("this engine is closed; load the model again")
        return self._prompts

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_prompt(self, prompt: "Prompt", options: GenerationOptions) -> None:
        limit = options.context_limit(self._max_context)
        if limit is not None and len(prompt.tokens) >= limit:
            raise too_long(str(len(prompt.tokens)), limit)
        if not prompt.fits(self._vocab_size):
            raise no_token_id(self._vocab_size)

    def _think(self, generation: Generation, guide: "Guide | None", request: Request) -> None:
        """Have an answer's thoughts, and calls, apart from what it says."""
        from engine.decoding.parts import parts_of
        from engine.decoding.thinking import thinking_guide

        marks, thought, options = self._marks, generation.prompt.thought, generation.options
        held = thinking_guide(marks, self._vocab_size, thought, options, guide, self._ends)
        reader = None
        if request.tools:
            from engine.tools.asking import guide_of, reader_of

            reader = reader_of(request, self._builder())
            held = guide_of(request, self._builder(), self._guides, held)
        generation.guide = held
        generation.parts = parts_of(marks, thought, options, guide is not None, reader)

    def _guide(self, schema: Any) -> "Guide":
        """What holds an answer to its schema."""
        guides = self._guides
        if guides is None:
            raise EngineClosed("this engine is closed; load the model again")
        return guides.guide(Schema.of(schema))

    def _check(self, options: GenerationOptions) -> None:
        """What an option asks for that this model cannot do."""
        if not self._has_decoder:
            raise RequestError("this model was loaded with vocab_only; it can only tokenize")
        for token in options.logit_bias:
            if token >= self._vocab_size:
                raise OptionError(
                    f"logit_bias names token {token}, but the vocabulary ends at "
                    f"{self._vocab_size - 1}"
                )
        if options.kv_bits is None:
            return
        if self._kv_unit is None:
            raise OptionError("this model's KV cache cannot be quantized; leave kv_bits out")
        if self._kv_unit % options.kv_group_size:
            raise OptionError(f"kv_group_size must divide this model's head size, {self._kv_unit}")


def _path(path: str | os.PathLike[str]) -> Path:
    """Where a conversation lies; what a link points to, so that saving keeps the link."""
    name = file_name(path, "a conversation's file", ConversationFileError)
    try:
        whole = Path(name).expanduser().resolve()
    except (ValueError, RuntimeError, OSError) as error:
        raise ConversationFileError(f"{name!r:.80} is no path of a file: {error}") from error
    if not whole.name:
        raise ConversationFileError(f"{whole} is no path of a file")
    return whole


def _log_failure(done: "Future[None]") -> None:
    if (error := done.exception()) is not None:
        log.error("a conversation's KV cache cannot be used", exc_info=error)
