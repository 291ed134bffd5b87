"""Answers made together, each against the same one made by itself."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from support.at_once import all_at_once, cancel_at, held
from support.families import FAMILIES_IN_TURN
from support.gemma3_reference import Gemma3Reference

from engine import (
    Engine,
    Event,
    Finished,
    Generation,
    GenerationOptions,
    NumericalError,
    OptionError,
    Progress,
    Request,
    TextDelta,
    load,
)
from engine.decoding import reading
from engine.decoding.company import Company
from engine.decoding.lane import LaneCache
from vision_add_ons.testing import TOLERANCE, Reference, written

WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.8, "repetition_penalty": 1.2, "top_logprobs": 3},
    {"temperature": 1.3, "top_k": 9, "min_p": 0.01, "frequency_penalty": 0.5},
]
SHORT = GenerationOptions(max_tokens=6)


def requests(reference: Reference, seed: int, count: int) -> list[Request]:
    """Texts and prompts with pictures, of all lengths, each answered in another way."""
    chance = random.Random(seed)
    made = []
    for i in range(count):
        numbers = np.random.default_rng([seed, i])
        pictures = []
        tokens = [chance.randint(5, 60) for _ in range(chance.randint(3, 40))]
        for _ in range(chance.choice((0, 0, 1, 2))):
            size = (chance.randint(20, 60), chance.randint(20, 60), 3)
            pictures.append(Image.fromarray(numbers.integers(0, 255, size, dtype=np.uint8)))
            if reference.image_token is not None:
                # Never last, as a window that is full refuses.
                tokens.insert(chance.randint(1, len(tokens) - 1), reference.image_token)
        length = chance.choice((1, 2, 5, 9, 17, 24))
        options = GenerationOptions(max_tokens=length, logprobs=True, seed=i, **WAYS[i % len(WAYS)])
        made.append(Request(tokens, pictures, options, client=i))
    return made


def told(generation: Generation) -> tuple[list[TextDelta], Finished]:
    *events, end = generation
    assert isinstance(end, Finished)
    if end.error is not None:
        raise end.error
    return [e for e in events if isinstance(e, TextDelta) and e.token is not None], end


@pytest.mark.parametrize("family", FAMILIES_IN_TURN, ids=lambda family: family.name)
def test_each_is_what_it_is_alone(
    family: type[Reference], tmp_path: Path, seed: int, record_property: Any
) -> None:
    reference = family(seed)
    written(reference, tmp_path)
    asked = requests(reference, seed, 5)
    with load(tmp_path) as engine:
        alone = [told(engine.submit(request)) for request in asked]
    with load(tmp_path, parallel=4) as engine:
        together = [told(g) for g in [engine.submit(request) for request in asked]]
    with load(tmp_path, parallel=4, cache_bytes=0) as engine:
        lone = told(engine.submit(asked[0]))
    worst = 0.0
    for (ours, end), (theirs, expected) in zip(together, alone, strict=True):
        assert [t.token for t in ours] == [t.token for t in theirs]
        assert (end.answer, end.finish_reason) == (expected.answer, expected.finish_reason)
        for a, b in zip(ours, theirs, strict=True):
            assert [token for token, _ in a.top_logprobs] == [token for token, _ in b.top_logprobs]
            assert a.logprob is not None
            assert b.logprob is not None
            worst = max(worst, abs(a.logprob - b.logprob))
    assert worst <= TOLERANCE
    # A row that is alone is the same to the bit.
    assert [(t.token, t.logprob) for t in lone[0]] == [(t.token, t.logprob) for t in alone[0][0]]
    record_property("parity", (family.name, "together against alone", worst))


@pytest.fixture(scope="module")
def crowd(letters_folder: Path) -> Any:
    with load(letters_folder, parallel=4) as engine:
        yield engine


def test_what_they_begin_with_is_computed_once(crowd: Engine) -> None:
    start = "the same long beginning " * 10
    asked = [crowd.generate(start + end, options=SHORT) for end in ("a", "b", "cc")]
    first, *others = [generation.result() for generation in asked]
    assert first.cached_tokens == 0
    for generation, end in zip(asked[1:], others, strict=True):
        assert len(generation.prompt.tokens) - end.cached_tokens <= 3


def test_a_chat_stays_warm_in_company(crowd: Engine) -> None:
    chats = [crowd.chat(f"Be {i}.", options=SHORT) for i in range(3)]
    for turn in range(3):
        asked = [chat.send(f"Question {turn}?") for chat in chats]
        for generation in asked:
            end = generation.result()
            assert turn == 0 or end.cached_tokens > len(generation.prompt.tokens) // 2


def test_cancelled_it_leaves_the_others(crowd: Engine, letters: Engine) -> None:
    long = GenerationOptions(max_tokens=40)
    expected = letters.generate("abc", options=long).result()
    with all_at_once(crowd):
        asked = [crowd.generate("abc" if i else "never", options=long) for i in range(4)]
        cancel_at(asked[0], lambda event: isinstance(event, TextDelta))
    end = asked[0].result()
    assert (end.finish_reason, len(end.tokens)) == ("cancelled", 1)
    assert {g.result().tokens for g in asked[1:]} == {expected.tokens}


def test_one_that_fails_fails_alone(
    crowd: Engine, letters: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.decoding.row_sampler import Row

    take = Row.next

    def broken(row: Row) -> Any:
        if row.way.temperature == 2:
            raise NumericalError("planted")
        return take(row)

    expected = letters.generate("abc", options=SHORT).result().tokens
    with monkeypatch.context() as patch:
        patch.setattr(Row, "next", broken)
        hot = GenerationOptions(max_tokens=6, temperature=2)
        asked = [crowd.generate("abc", options=hot if i == 1 else SHORT) for i in range(3)]
        with pytest.raises(NumericalError):
            asked[1].result()
        assert [asked[i].result().tokens for i in (0, 2)] == [expected] * 2
    assert crowd.generate("abc", options=SHORT).result().tokens == expected


def test_a_step_that_fails_ends_all_of_it(crowd: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.decoding.lane import Lane

    def broken(lane: Lane) -> Any:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "step", broken)
        for generation in [crowd.generate("abc", options=SHORT) for _ in range(3)]:
            with pytest.raises(RuntimeError, match="planted"):
                generation.result()
    assert crowd.generate("abc", options=SHORT).result().completion_tokens == 6


def test_what_cannot_be_decoded_together_takes_turns(tmp_path: Path, seed: int) -> None:
    from support import tiny

    folder = tiny.save_of_letters(seed, tmp_path / "model", head_dim=64)
    options = [SHORT, GenerationOptions(max_tokens=6, kv_bits=8, quantized_kv_start=0)] * 3
    with load(folder) as engine:
        alone = [engine.generate("abcdef", options=o).result().tokens for o in options[:2]]
    with load(folder, parallel=3) as engine:
        asked = [engine.generate("abcdef", options=o) for o in options]
        assert [generation.result().tokens for generation in asked] == alone * 3


def test_closed_while_they_answer(letters_folder: Path) -> None:
    engine = load(letters_folder, parallel=3)
    asked = [engine.generate("abc", options=GenerationOptions(max_tokens=500)) for _ in range(5)]
    next(asked[0])
    engine.close()
    assert {generation.result().finish_reason for generation in asked} <= {"cancelled", "length"}


@pytest.mark.parametrize("parallel", [0, -1, 257, True, 2.0, "4", None])
def test_counts_that_are_none(letters_folder: Path, parallel: Any) -> None:
    with pytest.raises(OptionError, match="parallel must be a number from 1 to 256"):
        load(letters_folder, parallel=parallel)


def test_a_decoder_that_takes_padding_for_tokens_is_found(
    letters_folder: Path, letters: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are made one after the other then, and are right."""
    from mlx_lm.models import cache

    def unmasked(self: Any, N: int, **_: Any) -> Any:
        return None if N == 1 else "causal"

    expected = letters.generate("abc", options=SHORT).result().tokens
    monkeypatch.setattr(cache.BatchKVCache, "make_mask", unmasked)
    with load(letters_folder, parallel=4) as engine:
        asked = [engine.generate("abc" if i else "a longer one", options=SHORT) for i in range(3)]
        assert [generation.result().tokens for generation in asked[1:]] == [expected] * 2


def test_a_long_prompt_lets_others_go_on(crowd: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its chunks, the others have their tokens."""
    monkeypatch.setattr(reading, "GAP", 0.0)  # however quick the machine is
    order: list[str] = []

    def ask(name: str, prompt: str, options: GenerationOptions) -> Generation:
        def on_event(event: Event) -> None:
            order.append(f"{name} {type(event).__name__}")
            if order[-1] == "reading Finished":
                running.cancel()

        return crowd.submit(Request(prompt, options=options), on_event=on_event)

    endless = GenerationOptions(max_tokens=1500, logit_bias={2: -100})
    with held(crowd, lambda: ask("running", "abc", endless)) as running:
        asked = ask("reading", "abcdefgh " * 60, GenerationOptions(max_tokens=1))
    assert asked.result().completion_tokens == 1
    assert running.result().finish_reason == "cancelled"
    chunks = [i for i, name in enumerate(order) if name == "reading Progress"]
    assert len(chunks) > 8
    between = order[chunks[0] : chunks[-1]]
    assert between.count("running TextDelta") >= len(chunks) - 3  # not where it begins, or ends


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_left_unread_says_nothing_of_the_pace(
    letters_folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    readings: list[reading.Reading] = []
    add = reading.Reading.add

    def watched(self: reading.Reading, answer: Any) -> None:
        readings.append(self)
        add(self, answer)

    monkeypatch.setattr(reading.Reading, "add", watched)
    options = GenerationOptions(prefill_step_size=64)
    begun: list[Generation] = []

    def cancel(event: Any) -> None:
        if isinstance(event, Progress) and event.processed:
            for generation in begun:
                generation.cancel()

    with load(letters_folder, parallel=4, cache_bytes=0) as engine:
        with all_at_once(engine):
            for i in range(count):
                request = Request("abcdefgh"[i] * 900, options=options)
                begun.append(engine.submit(request, on_event=cancel))
        assert {generation.result().finish_reason for generation in begun} == {"cancelled"}
    assert not readings[0]._paces


def test_those_who_come_together_have_their_first_tokens_together(
    seeing_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts, and prompts with pictures that are encoded one after the other, of all lengths; and
    who comes while these are read."""
    rows: list[int] = []
    step = Company.step
    late: list[Generation] = []

    def watched(company: Company) -> None:
        rows.append(len(company))
        step(company)

    monkeypatch.setattr(Company, "step", watched)
    for most in ("GAP", "FIRST"):
        monkeypatch.setattr(reading, most, 600.0)  # however slow the machine is
    with load(seeing_folder, parallel=6) as engine:

        def another(_: object) -> None:
            if not late:
                late.append(engine.generate("late", options=SHORT))

        with all_at_once(engine):
            asked = [engine.generate("letters " * n, options=SHORT) for n in (3, 30)]
            for colour in ("red", "blue"):
                look = [{"role": "user", "content": colour}]
                pictures = [Image.new("RGB", (30, 30), colour)]
                request = Request(look, pictures, SHORT)
                asked.append(engine.submit(request, on_event=another))
        for generation in asked:
            generation.result()
        late[0].result()
    assert rows[0] == 5


def test_the_oldest_of_those_that_begin_alike_goes_first(letters_folder: Path) -> None:
    start = "the same long beginning " * 30
    options = GenerationOptions(max_tokens=4, prefill_step_size=64)
    for kept in ({}, {"cache_bytes": 0}):
        with load(letters_folder, parallel=4, **kept) as engine:
            asked = [engine.generate(start + "x" * i, options=options) for i in range(6)]
            for generation in asked:
                assert generation.result().completion_tokens == 4


def test_a_client_s_first_comes_before_another_s_second(letters_folder: Path) -> None:
    def ask(client: str) -> Generation:
        return engine.submit(Request("abc", options=SHORT, client=client))

    many: list[Generation] = []

    def ask_for_all() -> Generation:
        many.extend(ask("a") for _ in range(9))
        return many[0]

    with load(letters_folder, parallel=3) as engine, held(engine, ask_for_all):
        ask("b")
        waiting = [job.client for job in engine._worker._waiting if isinstance(job, Generation)]
        assert waiting == ["b", *"aaaaaa"]


def test_prompts_of_one_token(tmp_path: Path, seed: int) -> None:
    written(Gemma3Reference(seed), tmp_path)
    with load(tmp_path) as engine:
        expected = engine.generate([7], options=SHORT).result().tokens
    with load(tmp_path, parallel=4) as engine:
        asked = [engine.generate([7], options=SHORT) for _ in range(3)]
        assert {generation.result().tokens for generation in asked} == {expected}


def test_cancelled_while_several_are_read_a_chat_stays_warm(letters_folder: Path) -> None:
    with load(letters_folder, parallel=4) as engine:
        chat = engine.chat(options=SHORT)
        chat.send("a history " * 40).result()
        asked = [chat.send("b" * 300), engine.generate("c" * 420, options=SHORT)]
        asked[0].cancel()
        for generation in asked:
            generation.result()
        assert chat.send("So?").result().cached_tokens > 400


def test_where_a_cache_is_lost_at_its_end_it_has_ended_well(
    crowd: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others of its lane, which is lost with it, cannot go on."""

    def broken(cache: LaneCache, index: int) -> Any:
        raise RuntimeError("planted: out of memory")

    with monkeypatch.context() as patch, caplog.at_level("WARNING"):
        patch.setattr(LaneCache, "extract", broken)
        with all_at_once(crowd):
            asked = [crowd.generate(f"abc{i}", options=SHORT) for i in range(2)]
            longer = crowd.generate("abc2", options=replace(SHORT, max_tokens=200))
        assert [generation.result().completion_tokens for generation in asked] == [6, 6]
        with pytest.raises(RuntimeError, match="planted"):
            longer.result()
    assert "are lost: planted" in caplog.text
    assert crowd.generate("abc", options=SHORT).result().completion_tokens == 6


def test_a_quantized_one_that_waits_can_be_cancelled(tmp_path: Path, seed: int) -> None:
    from support import tiny

    folder = tiny.save_of_letters(seed, tmp_path / "model", head_dim=64)
    long = GenerationOptions(max_tokens=400, kv_bits=8, quantized_kv_start=0)
    with (
        load(folder, parallel=3) as engine,
        held(engine, lambda: engine.generate("abc", options=long)) as first,
    ):
        second = engine.generate("abd", options=long)
        second.cancel()
        assert second.result().finish_reason == "cancelled"
        assert not first.done
        first.cancel()
