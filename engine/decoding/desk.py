"""Answers under way: which prompt is read, which answers are decoded, in what turns."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.generate import generation_stream, wired_limit

from engine.decoding import alone
from engine.decoding.answer import Answer, Cancelled
from engine.decoding.lane import Lane, decodes_together
from engine.decoding.prefill import prefill
from engine.decoding.row_sampler import Row, RowSampler
from engine.decoding.sampling import logits_processors
from engine.events import FinishReason
from engine.generation import Generation
from engine.memory.memory import Memory
from vision_add_ons.cache_views import plain_caches, shift_of

if TYPE_CHECKING:
    from model_kit.kit import ModelKit


CHUNK = 2048
"""Tokens of prompts that are run between two steps of the answers under way."""


class _Together:
    """An answer that is decoded in the lane, and its text."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.row = Row(answer.options, answer.seed, answer.kit.vocab_size)
        self._detokenizer = answer.kit.tokenizer.detokenizer
        self._eos = answer.kit.tokenizer.eos_token_ids
        self._left = answer.max_tokens

    def feed(self, token: int) -> FinishReason | None:
        """Deal with the next token, as mlx-lm's `stream_generate` does."""
        logprob, alternatives = self.row.next()
        ended: FinishReason | None = None
        self._left -= 1
        if token in self._eos:
            ended = "stop"
        else:
            self._detokenizer.add_token(token)
            if not self._left:
                ended = "length"
        if ended is not None:
            self._detokenizer.finalize()
        text = self._detokenizer.last_segment
        return self.answer.feed(token, text, ended, logprob, alternatives)


class Desk:
    """Answers as many requests at once as it has places. For the engine's thread alone.

    With one place, each is answered by itself, as mlx-lm alone does. With more, prompts are read
    one after the other, a chunk or a picture at a time, with a step of all answers between two;
    what cannot be decoded together (quantized KV caches) is answered by itself, in turns with
    the others, one token each.
    """

    def __init__(self, kit: "ModelKit", memory: Memory, places: int) -> None:
        self._kit = kit
        self._memory = memory
        self._places = places
        self._model: Any = kit.text_model  # None of a tokenizer alone
        self._together = (
            places > 1
            and self._model is not None
            and decodes_together(self._model, kit.make_cache, kit.vocab_size)
        )
        self._reading: deque[tuple[Answer, Iterator[int]]] = deque()
        self._alone: deque[Answer] = deque()
        """Those that wait for their turn of being answered by themselves."""
        self._single: Iterator[None] | None = None
        self._lane = Lane(self._model)
        self._rows: dict[int, _Together] = {}
        self._wired = ExitStack()

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._reading or self._alone or self._single or self._rows)

    @property
    def has_room(self) -> bool:
        """Whether another request can be taken."""
        under_way = len(self._reading) + len(self._alone) + len(self._rows)
        return under_way + (self._single is not None) < self._places

    def admit(self, generation: Generation) -> None:
        """Begin to answer a request."""
        answer = Answer(self._kit, self._memory, generation)
        if not self._together or answer.options.kv_bits is not None:
            self._alone.append(answer)
        else:
            if not self.busy:
                # As mlx-lm's loop does for what it runs itself.
                self._wired.enter_context(wired_limit(self._model, [generation_stream]))
            self._reading.append((answer, self._read(answer)))

    def go_on(self) -> None:
        """A step of everything that is under way."""
        self._read_on()
        if self._rows:
            self._step()
        if self._single is None and self._alone:
            self._single = alone.steps(self._alone.popleft())
        if self._single is not None and next(self._single, self) is self:
            self._single = None
        if not self.busy:
            self._wired.close()

    def close(self) -> None:
        """Let go of everything; for when nothing is under way, or nothing works any more."""
        self._wired.close()

    # --- prompts ---------------------------------------------------------------------------------

    def _read_on(self) -> None:
        """Read prompts, a chunk each, until one chunk's worth of tokens was run or all had one."""
        done = 0
        for _ in range(len(self._reading)):
            # In turns, so that a short prompt does not wait for all of a long one.
            answer, reading = self._reading.popleft()
            ran = next(reading, None)
            if ran is not None:
                self._reading.append((answer, reading))
                done += ran
            if done >= CHUNK:
                break

    def _read(self, answer: Answer) -> Iterator[int]:
        """Read a prompt, then decode it; yields after each picture and chunk what to count for it.

        What another one that is under way begins with too is read once.
        """
        try:
            while any(other.shares(answer) for other, _ in self._reading):
                answer.stop_if_cancelled()
                yield 0
            shared = {name: row.answer.shares(answer) for name, row in self._rows.items()}
            most = max(shared, key=shared.__getitem__, default=0)
            if shared.get(most):
                self._rows[most].answer.share(self._lane.take(most))
            rest = answer.begin()
            assert answer.kv is not None
            rows: dict[str, mx.array] = {}
            for span in answer.spans:
                if span.picture.digest not in rows:
                    rows[span.picture.digest] = answer.encode(span.picture)
                    yield CHUNK
            embeddings = answer.embeddings(rest, lambda picture: rows[picture.digest])
            answer.look()
            model, kv, total = self._model, answer.kv, len(rest)
            before = 0
            for done in prefill(model, rest, embeddings, kv, answer.whole, answer.options):
                answer.progress(done, total)
                if done > before:
                    yield done - before
                before = done
            if any(answer.shares(other) for other, _ in self._reading):
                answer.share(plain_caches(kv))
            self._join(answer, mx.array(list(rest[-1:])), embeddings)
            answer.progress(total, total)
        except Cancelled:
            answer.end("cancelled")
        except BaseException as error:
            answer.end("error", error)

    def _join(self, answer: Answer, last: mx.array, embeddings: mx.array | None) -> None:
        """Decode an answer with the others, from its prompt's last token on."""
        assert answer.kv is not None
        views, answer.kv = answer.kv, None  # the lane's, from now on
        tokens = answer.prompt.tokens
        together, first = _Together(answer), None
        name, sampler = id(together), RowSampler([together.row])
        if _sees_itself_whole(answer):
            processors = logits_processors(answer.options, tokens[:-1])
            row = None if embeddings is None else embeddings[-1:]
            last = first = self._lane.first(last, row, views, sampler, processors)
        processors = logits_processors(answer.options, tokens if first is not None else tokens[:-1])
        self._lane.add(name, last, plain_caches(views), shift_of(views), sampler, processors)
        self._rows[name] = together
        if first is not None:
            self._deliver([(name, int(first))])

    # --- answers ---------------------------------------------------------------------------------

    def _step(self) -> None:
        """A token of each answer."""
        try:
            told = self._lane.step()
        except BaseException as error:
            self._fail(error)
        else:
            self._deliver(told)

    def _deliver(self, told: Sequence[tuple[int, int]]) -> None:
        ended: dict[int, tuple[FinishReason, BaseException | None]] = {}
        for name, token in told:
            try:
                reason = self._rows[name].feed(token)
            except BaseException as error:
                ended[name] = ("error", error)
            else:
                if reason is not None:
                    ended[name] = (reason, None)
        # Whoever waits for a token has it now, and not after the next step is prepared.
        time.sleep(0)
        for name in ended:
            self._rows[name].answer.kv = self._lane.take(name)
        self._lane.drop(ended)
        for name, end in ended.items():
            self._rows.pop(name).answer.end(*end)

    def _fail(self, error: BaseException) -> None:
        """A step of all failed: what they hold cannot be computed."""
        self._lane.clear()
        rows, self._rows = list(self._rows.values()), {}
        for together in rows:
            together.answer.end("error", error)


def _sees_itself_whole(answer: Answer) -> bool:
    """Whether the prompt's last token is an image's, or sees what stands behind it."""
    ends = [
        *(span.end for span in answer.prompt.spans),
        *(b for _, b in answer.prompt.bidirectional),
    ]
    return max(ends, default=0) >= len(answer.prompt.tokens)
