"""Texts become token ids: within a bound, with nobody waiting for another's, and only what is new.

A tokenizer of the `tokenizers` library first cuts a text at its added tokens (`<|im_start|>`,
`[INST]`), and encodes each stretch between two of them by itself. So two texts that share their
beginning up to such a token share the ids up to it, and what begins with it can be encoded alone.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, TypeVar

from engine.checks import too_long
from vision_add_ons.errors import ContextExceeded, PromptError

MOST_TEXT = 4 * 2**20
"""Characters of a prompt's whole text; tokenizers take seconds for so many."""

MOST_PARTS = 2**14
"""Messages of a prompt, and texts and images in all of them together: to write one costs kilobytes,
whatever it says."""

LONG_TEXT = 2**14
"""Characters from which on cancelling does not wait for the tokenizer: some hundredths of a second
for it, and a thread more."""

LOOK_AGAIN = 0.02
"""Seconds between two looks at whether a long text's prompt was cancelled."""

PROBE = "Probe: naïve  text,\n\twith <n>, 日本 and 🦊"

PIECE = 2**14
"""Characters of a text that are encoded at once where it may be far too long."""

Result = TypeVar("Result")


class Cancelled(Exception):
    """Raised where a prompt was being built that nobody wants any more."""


class Cuts:
    """The added tokens of a backend of the `tokenizers` library at which a text may be cut."""

    def __init__(self, backend: Any) -> None:
        added = backend.get_added_tokens_decoder()
        # One that is sought in the normalized text is found after the text was cut, and whether
        # one that stands alone is found depends on what is before it.
        self._texts = {
            token_id: token.content
            for token_id, token in added.items()
            if not token.normalized and not token.single_word and not token.lstrip
        }
        self.longest = max((len(token.content) for token in added.values()), default=0)
        """How many characters a token that is found can have."""

    def before(self, text: str, ids: Sequence[int], starts: Sequence[int], place: int) -> int:
        """The index of the last of a text's token `ids` that it may be cut before, or 0.

        They begin at the characters `starts`, that one before the character `place`.
        """
        index = bisect_left(starts, place) - 1
        while index > 0:
            added = self._texts.get(ids[index])
            # A model may have the same id for something else: what is unknown to it, or blanks.
            if added is not None and text.startswith(added, starts[index]):
                return index
            index -= 1
        return 0


class TextEncoder:
    """A loaded model's tokenizer; any thread may call it, and none waits for another.

    Encoding changes no tokenizer: transformers puts truncation and padding off at the first call.
    It lets go of the interpreter, which the backend does for a batch alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The part that knows where tokens begin; a tokenizer may do more than it does.
        self._backend: Any = None
        own = self.encode(PROBE)
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None and self.encode_with_starts(PROBE)[0] != own:
            self._backend = None
        self.cuts = None if self._backend is None else Cuts(self._backend)
        """Where texts may be cut; None where it is unknown where tokens begin."""

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens that the tokenizer puts before a text, and behind it."""
        plain = self.encode(PROBE)
        whole = list(self._tokenizer.encode(PROBE, add_special_tokens=True))
        for i in range(len(whole) - len(plain) + 1):
            if whole[i : i + len(plain)] == plain:
                return tuple(whole[:i]), tuple(whole[i + len(plain) :])
        return (), ()

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, with no special tokens added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_raw(self, text: str) -> list[int]:
        """Those of a prompt that is used as it stands.

        As mlx-lm does: a text that brings its own BOS gets no second one.
        """
        return list(self._tokenizer.encode(text, add_special_tokens=not self.brings_bos(text)))

    def check_fits(self, text: str, context: int | None) -> None:
        """Raises `ContextExceeded` for a text of far more tokens than the `context`.

        A tokenizer takes some hundred bytes for each token: where there may be many times as many
        as fit, they are first counted piece by piece, and no further than is needed.
        """
        if context is None or len(text) <= context or len(text.encode()) <= 4 * context:
            return
        # A border changes how the characters beside it are encoded, hence a third more.
        counted, most = 0, context + context // 3
        for at in range(0, len(text), PIECE):
            counted += len(self.encode(text[at : at + PIECE]))
            if counted > most:
                raise too_long(f"more than {context}", context)

    def brings_bos(self, text: str, at: int = 0) -> bool:
        """Whether the special token that begins texts stands there."""
        bos = self._tokenizer.bos_token
        return bos is not None and text.startswith(bos, at)

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids and the index in `text` where each begins; where `cuts` are known."""
        encoding = self._backend.encode_batch([text], add_special_tokens=False)[0]
        starts = []
        done = 0
        for start, end in encoding.offsets:
            # Some leave the blanks out that a token begins with.
            starts.append(done if done < start else start)
            done = end
        return encoding.ids, starts


def check_text(text: object) -> None:
    """Raises `PromptError` for what is no text, or holds half a character."""
    if not isinstance(text, str):
        raise PromptError(f"a text is wanted, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the text holds half a character (U+{ord(text[error.start]):04X}) at {error.start}; "
            "decode it anew, with errors replaced"
        ) from error


def check_length(length: int, parts: int = 1) -> None:
    """Raises `ContextExceeded` for more characters than `MOST_TEXT`, or parts than `MOST_PARTS`."""
    if parts > MOST_PARTS:
        raise ContextExceeded(
            f"the conversation has {parts:,} messages or parts, and the most is {MOST_PARTS:,}; "
            "start a new one, or give texts in one part"
        )
    if length > MOST_TEXT:
        raise ContextExceeded(
            f"the text has {length:,} characters, and the most is {MOST_TEXT:,}; give a part of it"
        )


def unless_cancelled(work: Callable[[], Result], cancel: threading.Event) -> Result:
    """What `work` returns or raises, or `Cancelled` soon after `cancel` was set.

    What a tokenizer has begun cannot be broken off; it goes on, on a thread that comes to its end
    for nobody.
    """
    future: Future[Result] = Future()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    # No daemon: a process that ends while the tokenizer is at work would be aborted.
    threading.Thread(target=do, name="sightline-prompt").start()
    while True:
        if cancel.is_set():
            raise Cancelled
        try:
            return future.result(LOOK_AGAIN)
        except TimeoutError:
            if future.done():  # it was the work's own
                return future.result()
