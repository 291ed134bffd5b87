"""The engine that an application holds: load a model, ask it, close it."""

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.chat import Chat
from engine.events import Event, Finished
from engine.generation import Generation
from engine.options import GenerationOptions
from engine.request import Request
from engine.worker import Worker
from vision_add_ons.errors import (
    CheckpointNotFound,
    ContextExceeded,
    ConversationFileError,
    EngineClosed,
    OptionError,
    PromptError,
    RequestError,
)

if TYPE_CHECKING:
    from engine.memory import Memory
    from engine.messages import Message
    from engine.prompt import PromptBuilder
    from model_kit.kit import ModelKit
    from model_kit.report import LoadReport
    from vision_add_ons.base import VisionAddOn

CACHE_SHARE = 0.25
"""The share of the memory that the device recommends to use which the prompt cache may fill."""

CACHE_DIR_BYTES = 8 * 2**30
"""The most that a folder of KV caches takes, unless the caller says otherwise."""

LoadProgress = Callable[[str, int, int], None]


class Engine:
    """A loaded model that answers requests; made by `load`.

    Every method may be called from any thread. All work is done on one thread that the engine
    owns, one answer at a time in the order of their submission; requests of several clients (see
    `Request.client`) take turns. Use it as a context manager, or call `close`.
    """

    options_class = GenerationOptions
    """What `options` are, for whoever is handed an engine and imports none."""

    def __init__(self, worker: Worker, kit: "ModelKit") -> None:
        from engine.prompt import PromptBuilder

        self._worker = worker
        self._prompts: PromptBuilder | None = PromptBuilder(kit)
        self._max_context = kit.max_context
        self._vocab_size = kit.vocab_size
        self._has_decoder = kit.text_model is not None
        self._kv_unit = kit.quantizable_kv_width
        self.report: LoadReport = kit.report
        """What was loaded, and what had to be assumed."""
        self._finalizer = weakref.finalize(self, worker.close)

    def chat(
        self,
        system: str | None = None,
        options: GenerationOptions | None = None,
        restore: str | os.PathLike[str] | None = None,
    ) -> Chat:
        """Start a conversation, or go on with the one that `Chat.save` wrote to `restore`.

        `options` are the defaults of its answers. A restored conversation starts warm if its KV
        cache lies beside it and this model wrote it; else the cache's file is removed, with one
        warning. Raises `ConversationFileError`, or `PromptError` for a `system` besides `restore`.
        """
        if restore is None:
            return Chat(self, system, options)
        if system is not None:
            raise PromptError("a restored conversation has its own system message; leave yours out")
        from engine import conversation_file

        path = _path(restore)
        messages = conversation_file.read(path)
        self._worker.call(lambda memory: memory.restore(path))
        return Chat(self, options=options, messages=messages)

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
        to that function instead, on the engine's thread: it must be quick and not raise. Whoever
        sets `cancel` ends the answer as `Generation.cancel` does, also before there is one; only
        what waits for its turn goes on waiting for it. Raises a `RequestError` before anything is
        run, or `EngineClosed`.
        """
        if not isinstance(request, Request):
            raise RequestError(f"submit takes a Request, not {type(request).__name__}")
        started = time.perf_counter()
        options = request.options
        if not isinstance(options, GenerationOptions):
            raise OptionError(f"options are GenerationOptions, not {type(options).__name__}")
        self._check(options)
        prompt = self._builder().build(request.prompt, request.images, options.max_image_size)
        limit = options.context_limit(self._max_context)
        if limit is not None and len(prompt.tokens) >= limit:
            raise ContextExceeded(
                f"the prompt has {len(prompt.tokens)} tokens, and the context ends at {limit}; "
                "shorten the conversation or start a new one"
            )
        self._check_ids(prompt.tokens)
        generation = Generation(
            prompt, options, request.owner, on_finish, started, on_event, cancel
        )
        generation.client = request.client
        generation.engine = self
        self._worker.submit(generation)
        return generation

    def save(
        self, path: str | os.PathLike[str], messages: "Sequence[Message]", owner: object | None
    ) -> "Future[int]":
        """`Chat.save`, with the KV cache of the conversation of `owner` if that is not None."""
        file = _path(path)
        future: Future[int] = Future()
        future.set_running_or_notify_cancel()  # it cannot be called off any more
        kept = tuple(messages)
        self._worker.call(lambda memory: memory.save(file, kept, owner, future))
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
        if threading.current_thread() is worker.thread:
            raise RequestError("an adapter cannot be changed from the engine's own thread")
        done: Future[None] = Future()

        def change(memory: "Memory") -> None:
            try:
                kit = worker.kit
                assert kit is not None
                before = kit.adapter
                kit.use_adapter(folder)
                try:
                    memory.serve(kit.fingerprint)
                except BaseException:
                    kit.put_adapter(before)
                    raise
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        worker.call(change)
        done.result()

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, with no special tokens added."""
        return self._builder().encode(text)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones written out; U+FFFD where characters are cut.

        Some tokenizers drop the space that a text begins with. Raises `RequestError` for what is
        no token id.
        """
        builder = self._builder()
        self._check_ids(tokens)
        return builder.decode(tokens)

    def token_bytes(self, token: int) -> bytes | None:
        """What a token stands for, which may be a part of a character; None if that is not known.

        Raises `RequestError` for what is no token id.
        """
        builder = self._builder()
        self._check_ids([token])
        return builder.token_bytes(token)

    def cache_stats(self) -> dict[str, int]:
        """What is kept for later requests: conversations, images, bytes of each, the budget."""
        from engine.memory import stats

        return stats(self._worker.memory)

    def close(self) -> None:
        """Cancel what runs, end what waits, free the model. Calling it again does nothing."""
        self._prompts = None  # it holds the add-on's weights, which are to go with the others
        self._finalizer()

    def _builder(self) -> "PromptBuilder":
        if self._prompts is None:
            raise EngineClosed("this engine is closed; load the model again")
        return self._prompts

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if any(not 0 <= token < self._vocab_size for token in tokens):
            raise RequestError(f"token ids must be from 0 to {self._vocab_size - 1}")

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


def load(
    model: str | os.PathLike[str] = "demo",
    *,
    progress: LoadProgress | None = None,
    decoder_only: bool = False,
    vocab_only: bool = False,
    cache_bytes: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_dir_bytes: int = CACHE_DIR_BYTES,
    adapter: str | os.PathLike[str] | None = None,
    add_on: "type[VisionAddOn] | None" = None,
    cancel: threading.Event | None = None,
) -> Engine:
    """Load a model and return an engine that answers with it.

    `model` is the folder of a checkpoint, the short name of a model (`"demo"`, or another that
    `sightline models` lists), or an id of the Hugging Face hub, `"org/name"` or
    `"org/name@revision"`; models are downloaded at their first use (see `model_kit.hub.resolve`).
    `decoder_only` loads a vision model's text half alone, `vocab_only` its tokenizer alone.
    `cache_bytes` is the prompt cache's budget; by default a quarter of the memory that the device
    recommends to use. `cache_dir` is a folder in which conversations' KV caches outlive the engine,
    those of all models together within `cache_dir_bytes`. `adapter` is the folder of a low-rank
    adapter in mlx-lm's format, see `Engine.load_adapter`. `add_on` is the class of a vision add-on
    that serves the checkpoint in place of the one that the registry names: for one that is not
    installed, or an application without its packages' metadata. It is refused
    (`UnsupportedCheckpoint`) if its `model_types` do not hold the checkpoint's.
    `progress(stage, done, total)` is called from the engine's thread, from the start on; what it
    raises ends the load. Whoever sets `cancel` ends it too, with `EngineClosed`, when the library
    that is being imported or the weights that are being read are there. Raises a subclass of
    `CheckpointError`, or `OptionError`.
    """
    if not isinstance(model, str | os.PathLike):
        raise CheckpointNotFound(f"a model is a name or a folder, not {type(model).__name__}")
    if cache_bytes is not None and (not isinstance(cache_bytes, int) or cache_bytes < 0):
        raise OptionError(f"cache_bytes must be a number of bytes, not {cache_bytes!r}")
    if type(cache_dir_bytes) is not int or cache_dir_bytes < 0:
        raise OptionError(f"cache_dir_bytes must be a number of bytes, not {cache_dir_bytes!r}")
    kept_in = None if cache_dir is None else _cache_folder(cache_dir)

    def load_kit(check_open: Callable[[], None]) -> "ModelKit":
        def report(stage: str, done: int, total: int) -> None:
            check_open()
            if cancel is not None and cancel.is_set():
                raise EngineClosed("loading the model was cancelled")
            if progress is not None:
                progress(stage, done, total)

        from model_kit.blas import preload_openblas

        preload_openblas()
        from engine.libraries import import_libraries
        from model_kit.hub import resolve

        folder = resolve(model, report)
        import_libraries(report)
        from model_kit.kit import load_model_kit

        kit = load_model_kit(
            folder,
            decoder_only=decoder_only,
            vocab_only=vocab_only,
            progress=report,
            add_on=add_on,
        )
        if adapter is not None:
            kit.use_adapter(adapter)
        return kit

    def remember(kit: "ModelKit") -> "Memory":
        from engine.memory import Memory
        from model_kit.report import memory_there

        share = int((memory_there() or 0) * CACHE_SHARE) if cache_bytes is None else cache_bytes
        return Memory(kit, share, kept_in, cache_dir_bytes)

    worker = Worker(load_kit, remember)
    try:
        return Engine(worker, worker.wait_until_loaded())
    except BaseException:
        worker.close()
        raise


def _path(path: str | os.PathLike[str]) -> Path:
    """Where a conversation lies; what a link points to, so that saving keeps the link."""
    try:
        whole = Path(path).expanduser().resolve()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise ConversationFileError(f"{path!r:.80} is no path of a file: {error}") from error
    if not whole.name:
        raise ConversationFileError(f"{whole} is no path of a file")
    return whole


def _cache_folder(cache_dir: str | os.PathLike[str]) -> Path:
    """The folder, made if there is none. Raises `OptionError` for one that cannot be written."""
    try:
        folder = Path(cache_dir).expanduser().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"cache_dir {cache_dir!r:.200} is no folder that can be made: {error}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"cache_dir {folder} cannot be written to; give another folder")
    return folder
