"""Answers that have to be what a schema says: which tokens may come next, by llguidance."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from engine.decoding.drawn import Drawn, DrawnToken
from engine.decoding.sampling import LogitsProcessor
from engine.decoding.schema_bounds import check_bounds
from engine.schema import Schema
from vision_add_ons.errors import OptionError
from vision_add_ons.libraries import import_library

log = logging.getLogger("sightline")

KEPT = 64
"""Schemas whose compiled form is kept, the latest."""

KEPT_SECONDS = 8.0
"""Of work to compile those that are kept: what takes half a second has some 40 MiB."""

MOST_SYMBOLS = 100_000
"""Symbols in a grammar's rules: what has more takes many seconds to compile."""

MOST_AT_ONCE = 20_000
"""Ways to go on that are followed at once: where objects may have so many other properties, or
values be so many other things."""

SECONDS = 20.0
"""How long a schema may take to be compiled."""

AT_ONCE = 3
"""Schemas that are compiled at once, at most, those beyond their time too. They hold nothing else
up meanwhile, for llguidance lets go of the interpreter."""

MOST_SAID = 300
"""Characters that are told of what is wrong with a schema: all of it may be in the message."""

SPACE = r"[\x20\x0A\x0D\x09]{0,32}"
"""What may stand between the parts of JSON: so much that it is as a person writes it, and that a
model which would write nothing else goes on."""


class AnswerGuide(Protocol):
    """Follows one answer, and tells which tokens may come next. For the engine's thread alone."""

    @property
    def error(self) -> OptionError | None:
        """Why it cannot go on."""

    def after(self, token: DrawnToken | None) -> mx.array | None:
        """Which tokens may follow, [vocab_size] of bool; see `Guide.after`."""


class Guides:
    """Compiles schemas for one model. For any thread."""

    def __init__(
        self, tokenizer: Any, vocab_size: int, spell: Callable[[int], bytes | None]
    ) -> None:
        """`tokenizer` is mlx-lm's; `vocab_size` is how many logits the decoder gives; `spell` tells
        what a token stands for."""
        self._tokenizer, self._vocab_size, self._spell = tokenizer, vocab_size, spell
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._vocabulary: Any = None
        """llguidance's tokenizer; it takes some tenths of a second to make."""
        self._compiled: OrderedDict[Schema, _Compiled] = OrderedDict()
        self._places = threading.Semaphore(AT_ONCE)

    def guide(self, schema: Schema, seconds: float | None = None) -> "Guide":
        """What guides one answer. Raises `OptionError` for a schema that is wrong, that nothing can
        meet, that takes too long (`seconds`, or `SECONDS`), or that asks for what cannot be held
        to, naming it."""
        with self._lock:
            compiled = self._compiled.get(schema)
            first = compiled is None
            if compiled is None:
                compiled = self._compiled[schema] = _Compiled()
            self._compiled.move_to_end(schema)
            self._forget()
        if first:
            threading.Thread(
                target=self._settle, args=(schema, compiled), name="sightline-schema", daemon=True
            ).start()
        try:
            error = compiled.matcher.exception(SECONDS if seconds is None else seconds)
        except TimeoutError:
            raise _TooSlow from None
        if isinstance(error, OptionError):  # it may be kept, and is raised to several
            raise OptionError(str(error)) from error.__cause__
        matcher = compiled.matcher.result()
        with self._lock:
            return Guide(matcher.deep_copy(), self._vocab_size, self.ends)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return frozenset(self._tokenizer.eos_token_ids)

    def _forget(self) -> None:
        """Keep no more than there is room for, the latest."""
        kept = self._compiled
        while len(kept) > KEPT or (
            len(kept) > 1 and sum(one.seconds for one in kept.values()) > KEPT_SECONDS
        ):
            kept.popitem(last=False)

    def _settle(self, schema: Schema, compiled: "_Compiled") -> None:
        """On a thread of its own, which cannot be stopped: what waits for it may have left."""
        try:
            if not self._places.acquire(timeout=SECONDS):
                raise _TooSlow
            try:
                matcher = self._compile(schema)
            finally:
                self._places.release()
            with self._lock:
                compiled.seconds = time.thread_time()
                self._forget()
            compiled.matcher.set_result(matcher)
        except BaseException as error:
            with self._lock:
                compiled.seconds = time.thread_time()
                # That a schema is wrong is known from now on; anything else may come out otherwise.
                known = isinstance(error, OptionError) and not isinstance(error, _TooSlow)
                if not known and self._compiled.get(schema) is compiled:
                    del self._compiled[schema]
                self._forget()
            compiled.matcher.set_exception(error.with_traceback(None))

    def _compile(self, schema: Schema) -> Any:
        if not self.ends:
            raise OptionError("schema: this model has no token that ends an answer")
        check_bounds(schema)
        llguidance = import_library("llguidance")
        with self._reading:
            if self._vocabulary is None:
                self._vocabulary = self._read_vocabulary()
        make = llguidance.LLMatcher
        try:
            if schema.kind == "json":
                options = {"whitespace_pattern": SPACE}
                grammar = make.grammar_from_json_schema(schema.source, overrides=options)
            elif schema.kind == "regex":
                grammar = make.grammar_from_regex(schema.source)
            else:
                grammar = schema.source
        except ValueError as error:
            raise OptionError(f"schema: {error}") from error
        limits = llguidance.LLParserLimits(
            max_grammar_size=MOST_SYMBOLS, max_items_in_row=MOST_AT_ONCE
        )
        matcher = make(self._vocabulary, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refusal(matcher)
        begun = Guide(matcher.deep_copy(), self._vocab_size, self.ends)
        begun.after(None)
        if begun.error is not None:
            raise begun.error
        return matcher

    def _read_vocabulary(self) -> Any:
        given = {"n_vocab": self._vocab_size, "eos_token": sorted(self.ends)}
        try:
            llguidance_hf = import_library("llguidance.hf")
            return llguidance_hf.from_tokenizer(self._tokenizer._tokenizer, **given)
        except ValueError as error:
            log.info("llguidance does not know this kind of tokenizer: %s", error)
        llguidance = import_library("llguidance")
        try:
            spelled = llguidance.TokenizerWrapper(_Spelled(self._tokenizer, self._spell, given))
            return llguidance.LLTokenizer(spelled, **given)
        except ValueError as error:
            raise OptionError(
                f"schema: answers of this model cannot be held to one, for its tokenizer: {error}"
            ) from error


class _Compiled:
    """A schema that is compiled, or being compiled."""

    def __init__(self) -> None:
        self.matcher: Future[Any] = Future()
        """llguidance's, for answers to begin with; or why there is none."""
        self.seconds = 0.0
        """What it took, of a processor's time."""


class _Spelled:
    """A tokenizer as llguidance takes those that are not Hugging Face's own kinds."""

    def __init__(
        self, tokenizer: Any, spell: Callable[[int], bytes | None], given: dict[str, Any]
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = given["eos_token"][0]
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted({*tokenizer.all_special_ids, *given["eos_token"]})
        known = range(len(tokenizer))
        self.tokens = [
            (spell(token) if token in known else None) or b"" for token in range(given["n_vocab"])
        ]

    def __call__(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens


class Guide:
    """Follows one answer. For the engine's thread alone."""

    def __init__(self, matcher: Any, vocab_size: int, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._bits = np.zeros((vocab_size + 31) // 32, np.int32)
        self._vocab_size = vocab_size
        self._over = False
        self.error: OptionError | None = None
        """Why it cannot go on."""

    def after(self, token: DrawnToken | None) -> mx.array | None:
        """Which tokens may follow, [vocab_size] of bool, the answer having gone on by `token`: None
        at its start. None where all may: when the answer is at its end, or there is an `error`."""
        if token is not None and not self._over:
            self.take(token.value)
        return self.allowed()

    def take(self, token: int) -> None:
        """Go on by a token."""
        if token in self._ends:
            self._over = True
        elif self.error is None and not self._matcher.consume_token(token):
            self.error = _refusal(self._matcher)

    def allowed(self) -> mx.array | None:
        """Which tokens may follow, as `after` tells it."""
        if self._over or self.error is not None:
            return None
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            self.error = _refusal(self._matcher)
            return None
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        return mx.array(allowed[: self._vocab_size].astype(bool))

    @property
    def whole(self) -> bool:
        """Whether nothing but an end may follow."""
        return bool(self._matcher.is_stopped())

    def copy(self) -> "Guide":
        """One that is where this is."""
        return Guide(self._matcher.deep_copy(), self._vocab_size, self._ends)


def guided(guide: AnswerGuide, drawn: Callable[[], mx.array | None]) -> LogitsProcessor:
    """For mlx-lm's loop; `drawn` gives the token, [1], that was drawn last."""

    def process(_: mx.array, logits: mx.array) -> mx.array:
        token = drawn()
        # The logits are computed while we wait for the token that they are computed from, and look
        # what may follow it.
        allowed = guide.after(None if token is None else Drawn(token, logits)[0])
        return logits if allowed is None else mx.where(allowed, logits, -mx.inf)

    return process


class _TooSlow(OptionError):
    def __init__(self) -> None:
        super().__init__(
            f"schema: it takes more than {SECONDS:g} seconds to be compiled, or to wait for others "
            "that do"
        )


def _refusal(matcher: Any) -> OptionError:
    """What llguidance says, in one line."""
    error = matcher.get_error().partition("<state>")[0]
    if error.startswith("NoExtension"):
        return OptionError("schema: nothing that this model can write would meet it")
    if error.startswith("panic"):
        return OptionError("schema: llguidance cannot read it: it is too large, or too odd")
    lines = [line.strip() for line in error[:4000].splitlines()]
    said = "; ".join(line for line in lines if line and set(line) != {"^"})
    return OptionError(f"schema: {said if len(said) <= MOST_SAID else said[:MOST_SAID] + ' ...'}")
