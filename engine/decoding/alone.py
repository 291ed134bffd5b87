"""An answer by itself, as mlx-lm alone makes it: the one place that calls its generation loop."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.generate import generation_stream, wired_limit

from engine.decoding.answer import Answer, Cancelled
from engine.decoding.guide import guided
from engine.decoding.prefill import prefill
from engine.decoding.sampling import Sampler, logits_processors
from engine.events import FinishReason
from engine.generation import Generation
from engine.memory.memory import Memory
from engine.options import GenerationOptions

if TYPE_CHECKING:
    from model_kit.kit import ModelKit

Step = Callable[[int], int]
MakeSampler = Callable[[GenerationOptions, int], Sampler]


class Alone:
    """Answers one request after the other, as mlx-lm alone does. For the engine's thread alone."""

    def __init__(self, kit: "ModelKit", memory: Memory) -> None:
        self._kit = kit
        self._memory = memory
        self._steps: Iterator[None] | None = None
        """Those of the answer that is under way."""

    def takes(self, generation: Generation, under_way: int) -> bool:
        """Whether there is room for another request, this one, beside so many."""
        return not under_way

    def admit(self, generation: Generation) -> None:
        """Begin to answer a request."""
        self._steps = steps(Answer(self._kit, self._memory, generation))

    def step(self, admit: Callable[[], bool]) -> None:
        """A token of the answer that is under way; there is no room for those whom `admit` lets
        in."""
        if self._steps is not None and next(self._steps, self) is self:
            self._steps = None


def steps(
    answer: Answer, step: Step | None = None, make_sampler: MakeSampler = Sampler
) -> Iterator[None]:
    """Make an answer, and yield after each of its tokens. Whatever happens, it ends.

    One at a time: mlx-lm's samplers draw from the thread's random state. Where others are made
    meanwhile, `step` says how many tokens of its prompt, of at most so many, are run next; then it
    yields after each such chunk too. `make_sampler` makes what draws, of options and the size of
    the vocabulary.
    """
    reason: FinishReason = "cancelled"
    try:
        reason = yield from _tokens(answer, step, make_sampler)
    except (Cancelled, GeneratorExit):
        answer.end(reason)
    except BaseException as error:
        answer.end("error", error)
    else:
        answer.end(reason)


def _tokens(
    answer: Answer, step: Step | None, make_sampler: MakeSampler
) -> Generator[None, None, FinishReason]:
    left = answer.begin()
    while not answer.room.admits(answer):
        answer.stop_if_cancelled()
        yield  # until others have ended
    options, kit, prompt = answer.options, answer.kit, answer.prompt
    rest, progress = left, answer.progress
    extra: dict[str, Any] = {}
    pieces = step is not None or answer.border is not None
    if pieces or prompt.spans or prompt.bidirectional:
        wires = step is None and prompt.spans  # mlx-lm's loop does it for what is left to it
        with wired_limit(kit.text_model, [generation_stream]) if wires else nullcontext():
            rest, extra = yield from _run_ahead(answer, left, step)
        ahead = len(left) - len(rest)

        def progress(processed: int, total: int) -> None:
            answer.progress(processed + ahead, total + ahead)

    if options.kv_bits is not None:
        extra |= {
            "kv_bits": options.kv_bits,
            "kv_group_size": options.kv_group_size,
            "quantized_kv_start": options.quantized_kv_start,
        }
    # The random state belongs to this thread: nobody else's numbers change.
    mx.random.seed(answer.seed)
    sampler = make_sampler(options, kit.vocab_size)
    processors = logits_processors(options, prompt.tokens[: -len(rest)])
    if answer.guide is not None:
        processors.append(guided(answer.guide, lambda: sampler.drawn))
    responses = stream_generate(
        kit.text_model,
        kit.tokenizer,
        mx.array(list(rest)),
        max_tokens=answer.max_tokens,
        sampler=sampler,
        logits_processors=processors,
        prompt_cache=answer.kv,
        prefill_step_size=answer.step,
        prompt_progress_callback=progress,
        **extra,
    )
    try:
        for response in responses:
            reason = answer.feed(
                int(response.token), response.text, response.finish_reason, *sampler.next()
            )
            # Lets go of the interpreter, so that whoever waits for the token has it now and not
            # after the next step is prepared: some milliseconds of Python, beside the one that is
            # computed.
            time.sleep(0)
            if reason is not None:
                return reason
            yield
    finally:
        responses.close()
    raise AssertionError("mlx-lm's loop ended without a final response")


def _run_ahead(
    answer: Answer, rest: Sequence[int], step: Step | None
) -> Generator[None, None, tuple[Sequence[int], dict[str, Any]]]:
    """Do what mlx-lm's loop cannot; the tokens left for it, and what it needs beside them."""
    embeddings = answer.embeddings(rest)
    answer.look()
    whole = any(end > 0 for _, end in answer.whole)
    if len(rest) > 1 and (whole or step is not None or answer.border is not None):
        assert answer.kv is not None
        assert answer.kit.text_model is not None
        model, total, most = answer.kit.text_model, len(rest), answer.step
        chunks = prefill(
            model,
            rest,
            embeddings,
            answer.kv,
            answer.whole,
            answer.options,
            lambda: most if step is None else step(most),
            answer.border,
        )
        for done in chunks:
            if done < total - 1:  # the loop tells the rest
                answer.progress(done, total)
            if step is not None:
                yield
        rest, embeddings = rest[-1:], None if embeddings is None else embeddings[-1:]
    return rest, {} if embeddings is None else {"input_embeddings": embeddings}
