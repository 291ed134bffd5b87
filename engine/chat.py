"""A conversation: its messages, and one answer at a time."""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.checks import check_flag, check_options, reading
from engine.events import Finished
from engine.generation import Generation
from engine.options import GenerationOptions
from engine.request import Request
from engine.tools.tool import AUTO, read_tools
from vision_add_ons.errors import ChatBusy, PromptError

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.prompts.messages import Message


class _Owner:
    """Whose KV cache is a chat's: no more than itself, and gone when the chat is."""


class Chat:
    """A conversation with a loaded model; made by `Engine.chat`.

    A question joins the history together with its answer: also with one that was cancelled or
    cut, as far as it came. After an error, or if nothing was answered yet, the history is as it
    was before the question.
    """

    def __init__(
        self,
        engine: "Engine",
        system: str | None = None,
        options: GenerationOptions | None = None,
        messages: "Sequence[Message]" = (),
        tools: Sequence[Any] = (),
    ) -> None:
        """`messages` are a history to go on with; it has its own system message."""
        check_options(options)
        self._engine = engine
        self._options = options or GenerationOptions()
        self._tools = read_tools(tools)
        self._owner = _Owner()
        self._messages: list[Message] = []
        self._busy = False
        self._current: Generation | None = None
        self._lock = threading.Lock()
        self.last: Finished | None = None
        """How the latest answer ended, with its statistics; None before the first."""
        self.reset(system)
        self._messages += messages

    @property
    def messages(self) -> "tuple[Message, ...]":
        """The history, oldest first."""
        return tuple(self._messages)

    def send(
        self,
        content: str | Sequence[Any] | None = None,
        images: Sequence[Any] = (),
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = AUTO,
        parallel_tool_calls: bool = True,
        results: Mapping[str, Any] | Sequence[Any] | None = None,
    ) -> Generation:
        """Ask, and return the answer under way: iterate it, or take its `result()`.

        `content` is a text, or a list of parts in their order: texts, images as `load_picture`
        returns them, or parts in the form of `read_messages`. `images` stand before its first
        text: paths, bytes, PIL images, data URIs, base64 texts, or what `load_picture` returned.
        Whoever sets `cancel` ends the answer as its own `cancel()` does, also while the pictures
        are still being read, or a long text split into tokens. All texts of a conversation
        together may have `engine.prompts.text_encoder.MOST_TEXT` characters, which is 4,194,304.
        `tools` are what this and the following answers may call, in place of those before; see
        `Request` for them, `tool_choice` and `parallel_tool_calls`. `results`, in place of a
        `content`, are what came of the calls of the last answer, each as a `content`: in the order
        of the calls, or by their ids (`ToolCall.id`). Raises `ChatBusy` while the
        previous answer is under way, or another `RequestError`.
        """
        from engine.prompts.messages import Message, read_messages

        self._engine.check_process()
        new = []
        if results is None:
            if type(content) is str and type(images) is tuple and not images:
                new = [Message("user", (content,))]
            else:
                new = read_messages([{"role": "user", "content": content}], images)
        else:
            with reading("the pictures", PromptError):
                if content is not None or images:
                    raise PromptError("results go by themselves; ask when they are answered")
        called: Sequence[Any] = self._tools if tools is None else tools
        with self._lock:
            if self._busy:
                raise ChatBusy("wait for the previous answer, or cancel it first")
            self._busy = True
            history = self._messages

        # Not under the lock: building a long prompt takes its time.
        try:
            if results is not None:
                from engine.tools.results import read_results

                new = read_results(history, results)
            request = Request(
                [*history, *new],
                (),
                self._options if options is None else options,
                owner=self._owner,
                tools=called,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
            )
            answered = partial(self._answered, history, new)
            generation = self._engine.submit(request, on_finish=answered, cancel=cancel)
        except BaseException:
            with self._lock:
                if self._messages is history:
                    self._busy = False
            raise
        with self._lock:
            reset = self._messages is not history
            if not reset:
                self._tools = tuple(request.tools)
            if not reset and self._busy:
                self._current = generation
        if reset:
            generation.cancel()
        return generation

    def save(self, path: str | os.PathLike[str], *, kv: bool = True) -> "Future[int]":
        """Write the conversation as it stands, to go on with by `Engine.chat(restore=path)`.

        Its messages and pictures go to `path`, its KV cache, if memory still holds it, to a file
        beside it, in the background. That one takes thousands of times the space of the words:
        whoever saves after each answer leaves it out with `kv=False`, and a KV cache that is there
        already serves as far as it goes. The future has the number of bytes written, or
        `ConversationFileError` or OSError; closing the engine waits for it. Each file is whole at
        every moment. The words need no engine: while it is being closed this waits for what it
        still writes, and once it is closed the messages and pictures are written at once, without
        a KV cache. Raises `ConversationFileError` for what is no path of a file.
        """
        check_flag("kv", kv)
        return self._engine.save(path, self.messages, self._owner if kv else None)

    def reset(self, system: str | None = None) -> None:
        """Forget the history; `system` begins the new one. An answer under way is cancelled."""
        from engine.prompts.messages import Message
        from engine.prompts.text_encoder import check_text

        self._engine.check_process()
        if system is not None:
            check_text(system)
        with self._lock:
            current, self._current = self._current, None
            self._busy = False
            self._messages = [] if system is None else [Message("system", system)]
            self.last = None
        if current is not None:
            current.cancel()

    def _answered(self, history: "list[Message]", new: "list[Message]", end: Finished) -> None:
        from engine.prompts.messages import answer_message

        with self._lock:
            if self._messages is not history:  # reset meanwhile
                return
            self._current = None
            self._busy = False
            self.last = end
            said = end.answer or end.tool_calls
            unanswered = end.finish_reason == "cancelled" and not said
            if end.finish_reason != "error" and not unanswered:
                history += [*new, answer_message(end)]
