"""One request, from prompt to final event: the one place that calls mlx-lm's generation loop."""

import logging
import secrets
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm import stream_generate

from engine.decoding.prefill import run_ahead
from engine.decoding.sampling import Alternatives, Sampler, logits_processors
from engine.decoding.stop_strings import StopStrings
from engine.events import Finished, FinishReason, Progress, TextDelta
from engine.generation import Generation, never_started
from engine.memory.kv_state import finite, kv_length, rotates, snapshot
from engine.memory.memory import Memory
from engine.memory.prefix_tree import joined
from engine.memory.prompt_cache import Start
from vision_add_ons.base import Picture
from vision_add_ons.cache_views import plain_caches
from vision_add_ons.token_ids import TokenIds

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

log = logging.getLogger("sightline")


class _Cancelled(Exception):
    """Raised from the prefill's progress callback, the one way out of it."""


class Runner:
    """Answers one request at a time, on the thread that loaded the model."""

    def __init__(self, kit: "ModelKit", memory: Memory) -> None:
        self._kit = kit
        self._memory = memory

    def run(self, generation: Generation) -> None:
        """Answer a request. Whatever happens, it ends with one final event."""
        _Answer(self._kit, self._memory, generation).run()


class _Answer:
    """The state of one answer while it is made."""

    def __init__(self, kit: "ModelKit", memory: Memory, generation: Generation) -> None:
        self.kit = kit
        self.cache = memory.prompts
        self.features = memory.features
        self.generation = generation
        self.options = generation.options
        self.prompt = generation.prompt
        self.stops = StopStrings(self.options.stop)
        seed = self.options.seed
        # 53 bits survive JSON in every language, so that a told seed can be used again.
        self.seed = secrets.randbits(53) if seed is None else seed
        self.started = time.perf_counter()
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.start = Start(None, 0, generation.owner)
        self.ahead = 0
        """Prompt tokens run before mlx-lm's loop took over."""
        self.images_encoded = self.images_reused = 0
        self.kv: list[Any] | None = None
        self.fed: list[int] = []
        """Every token generated, the one that ended the text included."""
        self.tokens: list[int] = []
        self.released: list[str] = []

    def run(self) -> None:
        error: BaseException | None = None
        reason: FinishReason = "error"
        try:
            reason = self._generate()
        except _Cancelled:
            reason = "cancelled"
        except BaseException as e:
            error = e
            log.debug("an answer failed", exc_info=e)
            # The frames hold the model, and mlx-lm's suspended loop a stream of this thread: let
            # go of both here, and not where and when the error is dropped.
            traceback.clear_frames(e.__traceback__)
            e.__traceback__ = None
        try:
            self._release_rest(reason)
            self._store(reason, failed=error is not None)
        except BaseException as e:
            error = error or e
        self.generation.finish(self._finished("error" if error else reason, error))

    def _generate(self) -> FinishReason:
        prompt, options = self.prompt, self.options
        self._stop_if_cancelled()
        self.start = self.cache.take(prompt, options.kv_variant, self.start.owner)
        self.kv, self.start.kv = self.start.kv, None
        if self.kv is None:
            self.kv = self.kit.make_cache()
        rest, extra = self._run_ahead(prompt.tokens[self.cached :])
        if options.kv_bits is not None:
            extra |= {
                "kv_bits": options.kv_bits,
                "kv_group_size": options.kv_group_size,
                "quantized_kv_start": options.quantized_kv_start,
            }
        # The random state belongs to this thread: nobody else's numbers change.
        mx.random.seed(self.seed)
        sampler = Sampler(options, self.kit.vocab_size)
        responses = stream_generate(
            self.kit.text_model,
            self.kit.tokenizer,
            mx.array(list(rest)),
            max_tokens=self._max_tokens(),
            sampler=sampler,
            logits_processors=logits_processors(options, prompt.tokens[: -len(rest)]),
            prompt_cache=self.kv,
            prefill_step_size=options.prefill_step_size,
            prompt_progress_callback=self._progress,
            **extra,
        )
        try:
            for response in responses:
                reason = self._take(response, *sampler.next())
                if reason is not None:
                    return reason
        finally:
            responses.close()
        raise AssertionError("mlx-lm's loop ended without a final response")

    def _run_ahead(self, rest: Sequence[int]) -> tuple[Sequence[int], dict[str, Any]]:
        """Do what mlx-lm's loop cannot; the tokens left for it, and what it needs beside them."""
        embeddings = self._embeddings(rest)
        add_on, kv, prompt = self.kit.add_on, self.kv, self.prompt
        assert kv is not None
        assert self.kit.text_model is not None
        if prompt.spans and add_on is not None:
            # The position of each token and what it may see depend on the pictures so far.
            self.kv = kv = add_on.cache_views(kv, prompt)
        whole = [(a - self.cached, b - self.cached) for a, b in prompt.bidirectional]
        if len(rest) > 1 and any(b > 0 for _, b in whole):
            run_ahead(
                self.kit.text_model, rest, embeddings, kv, whole, self.options, self._progress
            )
            self.ahead = len(rest) - 1
            rest, embeddings = rest[-1:], None if embeddings is None else embeddings[-1:]
        return rest, {} if embeddings is None else {"input_embeddings": embeddings}

    def _embeddings(self, rest: Sequence[int]) -> mx.array | None:
        """The embeddings of `rest`, pictures in place; None where token ids say it all."""
        spans = [s.shifted(-self.cached) for s in self.prompt.spans if s.start >= self.cached]
        if not spans:
            return None
        assert self.kit.add_on is not None
        assert self.kit.text_model is not None
        before = self.features.encoded, self.features.reused
        embedded = self.kit.add_on.compute_embeddings(
            self.kit.text_model, mx.array(list(rest)), spans, self._encode
        )
        mx.eval(embedded.input_embeddings)
        self.images_encoded = self.features.encoded - before[0]
        self.images_reused = self.features.reused - before[1]
        self._stop_if_cancelled()
        return embedded.input_embeddings

    def _encode(self, picture: Picture) -> mx.array:
        self._stop_if_cancelled()
        rows = self.features.encode(picture)
        # A long conversation would otherwise hold all of its photographs decoded.
        picture.release()
        return rows

    @property
    def cached(self) -> int:
        return self.start.length

    def _max_tokens(self) -> int:
        limit = self.options.context_limit(self.kit.max_context)
        if limit is None:
            return self.options.max_tokens
        return min(self.options.max_tokens, limit - len(self.prompt.tokens))

    def _stop_if_cancelled(self) -> None:
        if self.generation.cancelled:
            raise _Cancelled

    def _progress(self, processed: int, total: int) -> None:
        processed, total = processed + self.ahead, total + self.ahead
        if processed == total - 1 and self.kv and rotates(plain_caches(self.kv)):
            # The border of a turn: from here another answer can be tried.
            caches = plain_caches(self.kv)
            self.start.snapshots[self.cached + processed] = snapshot(caches)
        self.generation.emit(Progress(processed, total, self.cached))
        if processed < total:
            self._stop_if_cancelled()

    def _take(
        self, response: Any, logprob: float, alternatives: Alternatives
    ) -> FinishReason | None:
        """Deal with one token; the reason to end here, if there is one."""
        self.last_token = time.perf_counter()
        if self.first_token is None:
            self.first_token = self.last_token
        token = int(response.token)
        self.fed.append(token)
        text = response.text
        if response.finish_reason is not None:
            # An answer cut within a character ends before it.
            text = text.rstrip("\ufffd")
        text = self.stops.feed(text)
        if response.finish_reason == "stop":
            self._release(TextDelta(text))
        else:
            self.tokens.append(token)
            told = logprob if self.options.logprobs or self.options.top_logprobs else None
            self._release(TextDelta(text, token, told, alternatives))
        # Lets go of the interpreter, so that whoever waits for the token has it now and not after
        # the next step is prepared: some milliseconds of Python, beside the one that is computed.
        time.sleep(0)
        if self.stops.matched is not None:
            return "stop_string"
        if response.finish_reason is not None:
            return response.finish_reason
        return "cancelled" if self.generation.cancelled else None

    def _release(self, delta: TextDelta) -> None:
        if delta.text or delta.token is not None:
            self.released.append(delta.text)
            self.generation.emit(delta)

    def _release_rest(self, reason: FinishReason) -> None:
        """Give out text that was held back, by the stop strings or by mlx-lm's detokenizer."""
        if self.stops.matched is not None:
            return
        text = ""
        if reason in ("cancelled", "error") and self.tokens:
            # Leaving mlx-lm's loop early leaves its detokenizer's last characters there.
            detokenizer = self.kit.tokenizer.detokenizer
            for token in self.tokens:
                detokenizer.add_token(token)
                _ = detokenizer.last_segment  # as that loop does: reading it ends a segment
            detokenizer.finalize()
            text = self.stops.feed(detokenizer.last_segment.rstrip("\ufffd"))
        self._release(TextDelta(text + self.stops.flush()))

    def _store(self, reason: FinishReason, failed: bool) -> None:
        """Keep what was computed, also of an answer that was cancelled, if it is numbers.

        After an error, only what came from the cache: arrays that failed to evaluate would fail
        again.
        """
        length = kv_length(self.kv) if self.kv is not None else None
        if not length or (failed and length != self.cached):
            return
        key = joined(self.prompt.key, TokenIds(self.fed))[:length]
        if len(key) == length:  # else it holds a token that nobody was told
            kv = plain_caches(self.kv or [])
            # What was run and gave no token that was handed on, nobody has looked at.
            if reason in ("cancelled", "stop_string") and not finite(kv):
                return
            self.cache.put(key, kv, self.options.kv_variant, self.start)

    def _finished(self, reason: FinishReason, error: BaseException | None) -> Finished:
        submitted, started, first = self.generation.submitted, self.started, self.first_token
        speed = 0.0
        if first is not None and self.last_token is not None and self.last_token > first:
            speed = (len(self.fed) - 1) / (self.last_token - first)
        return replace(
            never_started(self.generation, error),
            finish_reason=reason,
            answer="".join(self.released),
            tokens=tuple(self.tokens),
            cached_tokens=self.cached,
            disk_tokens=self.cached if self.start.from_disk else 0,
            images_encoded=self.images_encoded,
            images_reused=self.images_reused,
            queue_seconds=started - submitted,
            prefill_seconds=(first or time.perf_counter()) - started,
            time_to_first_token=first - submitted if first and self.tokens else None,
            tokens_per_second=speed,
            seed=self.seed,
            stop_string=self.stops.matched,
        )
