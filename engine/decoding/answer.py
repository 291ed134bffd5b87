"""One answer while it is made: its prompt, its tokens and texts, its times, its end."""

import logging
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from engine.decoding.sampling import Alternatives
from engine.decoding.stop_strings import StopStrings
from engine.events import (
    Finished,
    FinishReason,
    Progress,
    TextDelta,
    ToolCall,
    ToolCallDelta,
)
from engine.generation import Generation
from engine.memory.kv_state import finite, frozen, kv_length, snapshot
from engine.memory.memory import Memory
from engine.memory.prompt_cache import Start
from engine.memory.prompt_index import common_prefix, joined
from engine.options import LARGEST
from vision_add_ons.base import ImageSpan, Picture
from vision_add_ons.cache_views import plain_caches
from vision_add_ons.safetensors_files import forget_failures
from vision_add_ons.token_ids import TokenIds

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

log = logging.getLogger("sightline")


LEAST_SHARED = 64
"""Tokens for which another prompt is waited for; fewer are run sooner."""


Ending = tuple[FinishReason, BaseException | None]
"""How an answer ends, and the error if there was one."""


class Cancelled(Exception):
    """Raised where an answer that nobody wants any more is at work."""


def ending(error: BaseException) -> Ending:
    """How an answer ends that raised this."""
    return ("cancelled", None) if isinstance(error, Cancelled) else ("error", error)


class Answer:
    """A request's state from its start to its final event. For the engine's thread alone."""

    def __init__(self, kit: "ModelKit", memory: Memory, generation: Generation) -> None:
        self.kit = kit
        self.generation = generation
        self.options = generation.options
        self.prompt = generation.prompt
        self.room = memory.room
        self._cache, self._features, self._rotates = memory.prompts, memory.features, memory.rotates
        self._parts = generation.parts
        self._stops = None if self._parts is None else self._parts.stops
        if self._parts is None and self.options.stop:
            self._stops = StopStrings(self.options.stop)
        self.guide = generation.guide
        """What holds it to its schema, if it has one, and its thought to its length."""
        seed = self.options.seed
        # 53 bits survive JSON in every language, so that a told seed can be used again.
        self.seed = secrets.randbits(53) if seed is None else seed
        self.kv: list[Any] | None = None
        """What holds the prompt, and the answer so far."""
        self.start = Start(None, 0, generation.owner)
        """What of the prompt was in the cache."""
        self.cached = 0
        """How many tokens of it those were."""
        self.border: int | None = None
        """How many of the tokens left to run are before the border of this turn, where it is known
        that later turns go on from there, and caches cannot go back by themselves."""
        self.step = self.options.prefill_step_size
        """Of how many tokens the prompt is run at once, at most."""
        self.limit: int | None = None
        """How many tokens the answer may have where memory ends before `max_tokens` do."""
        self.drafted = 0
        """How many of its tokens were drafted."""
        self._started = time.perf_counter()
        self._first_token: float | None = None
        self._last_token: float | None = None
        self._images_encoded = self._images_reused = 0
        self._rows: dict[str, mx.array] = {}
        """Those of the pictures that are to be run, by their digests, until they are in place."""
        self._bare = self.options.schema is not None and self.prompt.thought != "open"
        """Whether the space that it may begin with is still to be looked for."""
        self._fed: list[int] = []
        """Every token generated, the one that ended the text included."""
        self._tokens: list[int] = []
        self._released: list[str] = []

    # --- the prompt ----------------------------------------------------------------------------

    def begin(self) -> Sequence[int]:
        """Take what the cache has of the prompt; the tokens that are left to run."""
        self.stop_if_cancelled()
        self.start = self._cache.take(self.prompt, self.options.kv_variant, self.start.owner)
        self.kv, self.start.kv = self.start.kv, None
        self.cached = self.start.length
        if self.kv is None:
            self.kv = self.kit.make_cache()
        border = self.prompt.border
        if border is not None and self.cached < border and self._rotates:
            self.border = border - self.cached
        return self.prompt.tokens[self.cached :]

    def shares(self, other: "Answer") -> int:
        """How many tokens the other's prompt begins with as this one does; 0 for too few."""
        if self.generation.done or self.options.kv_variant != other.options.kv_variant:
            return 0
        common = common_prefix(self.prompt.key, other.prompt.key)
        if common <= self.cached + LEAST_SHARED:
            return 0
        known = self._cache.serves(other.prompt, other.options.kv_variant, other.start.owner)
        return common if common > known + LEAST_SHARED else 0

    def share(self, take: Callable[[], Sequence[Any]]) -> None:
        """Keep what `take` gives, the plain caches of this answer so far, for others too.

        It is not called where there is no memory for them to be there twice.
        """
        if not self.room.copies(self):
            return
        kv = take()
        key, length = joined(self.prompt.key, TokenIds(self._fed)), kv_length(kv) or 0
        if 0 < length <= len(key):
            asked = min(length, len(self.prompt.tokens))
            start = Start(None, 0, None, dict(self.start.snapshots), asked=asked)
            self._cache.put(key[:length], frozen(kv), self.options.kv_variant, start)

    @property
    def spans(self) -> list[ImageSpan]:
        """The images among the tokens that are left to run, counted from the first of those."""
        return [s.shifted(-self.cached) for s in self.prompt.spans if s.start >= self.cached]

    @property
    def whole(self) -> list[tuple[int, int]]:
        """The ranges that are run in one piece, counted from the first token that is left."""
        return [(a - self.cached, b - self.cached) for a, b in self.prompt.bidirectional]

    @property
    def max_tokens(self) -> int:
        """How many tokens the answer may have."""
        context = self.options.context_limit(self.kit.max_context)
        asked = self.options.max_tokens if self.limit is None else self.limit
        limits = [LARGEST if asked is None else asked]
        if context is not None:
            limits.append(context - len(self.prompt.tokens))
        return min(limits)

    def knows(self, picture: Picture) -> bool:
        """Whether a picture was encoded before."""
        return picture.digest in self._rows or self._features.knows(picture.digest)

    def encode(self, picture: Picture) -> mx.array:
        """A picture's rows, encoded here or before."""
        self.stop_if_cancelled()
        known = self._rows.get(picture.digest)
        if known is not None:
            return known
        fresh = not self._features.knows(picture.digest)
        return self.take(picture, self._features.encode(picture), fresh)

    def take(self, picture: Picture, rows: mx.array, fresh: bool) -> mx.array:
        """Have a picture's rows, which were encoded for this answer if `fresh`."""
        self._images_encoded += fresh
        self._images_reused += not fresh
        self._rows[picture.digest] = rows
        # A long conversation would otherwise hold all of its photographs decoded.
        picture.release()
        return rows

    def embeddings(self, rest: Sequence[int]) -> mx.array | None:
        """The embeddings of the tokens left to run, pictures in place.

        None for text alone, and where the decoder looks up its tokens' own.
        """
        spans = self.spans
        if not spans:
            return None
        assert self.kit.add_on is not None
        assert self.kit.text_model is not None
        embedded = self.kit.add_on.compute_embeddings(
            self.kit.text_model, mx.array(list(rest)), spans, self.encode
        )
        if embedded.input_embeddings is not None:
            mx.eval(embedded.input_embeddings)
        # One that stands there twice is encoded once.
        self._images_reused += len(spans) - len({span.picture.digest for span in spans})
        self.stop_if_cancelled()
        return embedded.input_embeddings

    def look(self) -> None:
        """Put the views of its pictures before the KV caches."""
        if self.prompt.spans and self.kit.add_on is not None:
            # The position of each token and what it may see depend on the pictures so far.
            assert self.kv is not None
            self.kv = self.kit.add_on.cache_views(self.kv, self.prompt, self.encode)
        self._rows = {}

    def progress(self, processed: int, total: int) -> None:
        """Tell that so many of the tokens left to run were; raises `Cancelled`."""
        border = total - 1 if self.border is None else self.border
        if processed == border and self.kv and self._rotates:
            # The border of a turn: from here another answer can be tried, or the next turn goes on.
            self.start.snapshots[self.cached + processed] = snapshot(plain_caches(self.kv))
        self.generation.emit(Progress(processed, total, self.cached))
        if processed < total:
            self.stop_if_cancelled()

    def read(self) -> None:
        """Tell that the whole prompt was run."""
        total = len(self.prompt.tokens) - self.cached
        self.generation.emit(Progress(total, total, self.cached))

    def stop_if_cancelled(self) -> None:
        """Raises `Cancelled` if nobody wants it any more."""
        if self.generation.cancelled:
            raise Cancelled

    # --- the answer ----------------------------------------------------------------------------

    def feed(
        self,
        token: int,
        text: str,
        ended: FinishReason | None,
        logprob: float,
        alternatives: Alternatives,
    ) -> FinishReason | None:
        """Deal with one token, the text that it makes ready, and whether it ends the answer.

        The reason to end here, if there is one.
        """
        self._last_token = time.perf_counter()
        if self._first_token is None:
            self._first_token = self._last_token
            self.room.has_read(self)
        self._fed.append(token)
        if self.guide is not None and self.guide.error is not None and ended is None:
            raise self.guide.error
        if ended is not None:
            # An answer cut within a character ends before it.
            text = text.rstrip("\ufffd")
        if self._bare and (text or ended is not None):
            text = self._with_its_space(text)
        told = logprob if self.options.logprobs or self.options.top_logprobs else None
        if ended != "stop":
            self._tokens.append(token)
        if self._parts is not None:
            of_token = {"token": token, "logprob": told, "top_logprobs": alternatives}
            for event in self._parts.feed(token, text, {} if ended == "stop" else of_token):
                self._release(event)
        else:
            text = text if self._stops is None else self._stops.feed(text)
            if ended == "stop":
                self._release(TextDelta(text))
            else:
                self._release(TextDelta(text, token, told, alternatives))
        if self._stops is not None and self._stops.matched is not None:
            return "stop_string"
        if ended is not None:
            return ended
        if self._parts is not None and self._parts.has_its_call:
            return "tool_calls"
        return "cancelled" if self.generation.cancelled else None

    def _with_its_space(self, text: str) -> str:
        """The first text of an answer that has a schema, which may have asked for the space that
        mlx-lm's detokenizer and some tokenizers drop there."""
        self._bare = False
        tokenizer = self.kit.tokenizer
        before = tokenizer.encode("a", add_special_tokens=False)
        whole = tokenizer.decode([*before, *self._fed]).removeprefix(tokenizer.decode(before))
        return " " + text if _spaces(whole) > _spaces(text) else text

    def _release(self, delta: TextDelta | ToolCallDelta | ToolCall) -> None:
        if not isinstance(delta, TextDelta):
            self.generation.emit(delta)
        elif delta.text or delta.token is not None or delta.reasoning:
            self._released.append(delta.text)
            self.generation.emit(delta)

    # --- its end -------------------------------------------------------------------------------

    def end(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """Give out what was held back, keep what was computed, and deliver the final event."""
        if error is not None:
            log.debug("an answer failed", exc_info=error)
            forget_failures()
            # The frames hold the model, and mlx-lm's suspended loop a stream of this thread: let
            # go of both here, and not where and when the error is dropped.
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
        try:
            # A plain answer that came to its end has told all of it.
            if self._stops is not None or reason in ("cancelled", "error"):
                self._release_rest(reason)
            if reason == "stop" and self._parts is not None and self._parts.calls:
                reason = "tool_calls"
            self._store(reason, failed=error is not None)
        except BaseException as e:
            error = error or e
        self.kv, self._rows = None, {}
        self.room.leave(self)
        self.generation.finish(self._finished("error" if error else reason, error))

    def _release_rest(self, reason: FinishReason) -> None:
        """Give out text that was held back, by the stop strings or by mlx-lm's detokenizer."""
        stops, text = self._stops, ""
        if stops is not None and stops.matched is not None:
            return
        if reason in ("cancelled", "error") and self._tokens:
            # Leaving mlx-lm's loop early leaves its detokenizer's last characters there.
            detokenizer = self.kit.tokenizer.detokenizer
            for token in self._tokens:
                detokenizer.add_token(token)
                _ = detokenizer.last_segment  # as that loop does: reading it ends a segment
            detokenizer.finalize()
            text = detokenizer.last_segment.rstrip("\ufffd")
        if self._parts is None:
            self._release(TextDelta(text if stops is None else stops.feed(text) + stops.flush()))
            return
        for event in self._parts.rest(text, by_itself=reason == "stop"):
            self._release(event)

    def _store(self, reason: FinishReason, failed: bool) -> None:
        """Keep what was computed, also of an answer that was cancelled, if it is numbers.

        After an error, only what came from the cache: arrays that failed to evaluate would fail
        again.
        """
        length = kv_length(self.kv) if self.kv is not None else None
        if not length or (failed and length != self.cached):
            return
        key = joined(self.prompt.key, TokenIds(self._fed))[:length]
        if len(key) == length:  # else it holds a token that nobody was told
            kv = plain_caches(self.kv or []) if self.prompt.spans else self.kv or []
            # What was run and gave no token that was handed on, nobody has looked at.
            if reason in ("cancelled", "stop_string", "tool_calls") and not finite(kv):
                return
            self._cache.put(key, kv, self.options.kv_variant, self.start)

    def _finished(self, reason: FinishReason, error: BaseException | None) -> Finished:
        submitted, started, first = self.generation.submitted, self._started, self._first_token
        speed = 0.0
        if first is not None and self._last_token is not None and self._last_token > first:
            speed = (len(self._fed) - 1) / (self._last_token - first)
        parts, tokens = self._parts, tuple(self._tokens)
        return Finished(
            finish_reason=reason,
            answer="".join(self._released),
            tokens=tokens,
            prompt_tokens=len(self.prompt.tokens),
            cached_tokens=self.cached,
            disk_tokens=self.cached if self.start.from_disk else 0,
            images_encoded=self._images_encoded,
            images_reused=self._images_reused,
            queue_seconds=started - submitted,
            prefill_seconds=(first or time.perf_counter()) - started,
            time_to_first_token=first - submitted if first and self._tokens else None,
            tokens_per_second=speed,
            seed=self.seed,
            drafted_tokens=self.drafted,
            stop_string=None if self._stops is None else self._stops.matched,
            error=error,
            tool_calls=() if parts is None else parts.calls,
            broken_calls=() if parts is None else parts.broken_calls,
            reasoning="" if parts is None else parts.reasoning,
            reasoning_tokens=0 if parts is None else parts.reasoning_tokens,
            answer_tokens=(
                tokens if parts is None else parts.said(tokens, self.kit.tokenizer.decode)
            ),
        )


def _spaces(text: str) -> int:
    """How many it begins with."""
    return len(text) - len(text.lstrip(" "))
